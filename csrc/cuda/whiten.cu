#include "cuda/arguments.cuh"
#include "cuda/matrix.cuh"

namespace ntkfast {
namespace {

/// T: features, O: psi
template <class T, class O>
void whiten(const TensorView& features_view, const TensorView& W_view, const TensorView& psi_view,
            void* stream) {
  const MatrixView<T> features = device_matrix<T>(features_view, "features", -1, -1);
  const MatrixView<double> W = device_matrix<double>(W_view, "W", features.cols, features.cols);
  const MatrixView<O> psi = device_matrix<O>(psi_view, "psi", features.rows, features.cols);
  const DeviceGuard guard(common_device({&features_view, &W_view, &psi_view}));
  Launcher launcher(stream_of(stream));
  launch_gemm<double>(launcher, GemmArgs<T, double, O>{{features.data, features.row_stride, 1},
                                                       {W.data, W.row_stride, 1},
                                                       psi.rows,
                                                       psi.cols,
                                                       psi.cols,
                                                       psi.data,
                                                       psi.row_stride,
                                                       1,
                                                       1.0,
                                                       0.0});
}

}  // namespace

void whiten_cuda(const TensorView& features, const TensorView& W, const TensorView& psi,
                 void* stream) {
  if (features.dtype == DType::kFloat64) {
    whiten<double, double>(features, W, psi, stream);
  } else if (features.dtype == DType::kBFloat16) {
    whiten<BFloat16, float>(features, W, psi, stream);
  } else {
    whiten<float, float>(features, W, psi, stream);
  }
}

}  // namespace ntkfast
