#include "cuda/arguments.cuh"
#include "cuda/matrix.cuh"

namespace ntkfast {
namespace {

template <class T>
void condition(const TensorView& S_view, const TensorView& V_view, void* stream) {
  const std::int64_t N = S_view.ndim == 2 ? S_view.shape[0] : -1;
  const MatrixView<T> S = device_matrix<T>(S_view, "S", N, N);
  const MatrixView<double> V = device_matrix<double>(V_view, "V", -1, N);
  const DeviceGuard guard(common_device({&S_view, &V_view}));
  Launcher launcher(stream_of(stream));
  launch_condition_dense<T>(launcher, S.data, S.row_stride, N, V.data, V.row_stride, V.rows);
}

}  // namespace

void condition_dense_cuda(const TensorView& S, const TensorView& V, void* stream) {
  if (S.dtype == DType::kFloat64) {
    condition<double>(S, V, stream);
  } else {
    condition<float>(S, V, stream);
  }
}

}  // namespace ntkfast
