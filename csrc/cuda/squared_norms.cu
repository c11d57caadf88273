#include "cuda/arguments.cuh"
#include "cuda/matrix.cuh"

namespace ntkfast {
namespace {

template <class T>
void squared_norms(const TensorView& X_view, const TensorView& s_view, void* stream) {
  const MatrixView<T> X = device_matrix<T>(X_view, "X", -1, -1);
  double* s = device_array<double>(s_view, "s", {X.rows});
  const DeviceGuard guard(common_device({&X_view, &s_view}));
  Launcher launcher(stream_of(stream));
  launcher.run<SquaredNorms<T>>({div_up(X.rows, SquaredNorms<T>::kThreads / 32), 1}, 0,
                                RowArgs<T>{X.data, X.row_stride, X.rows, X.cols, nullptr, 0, s});
}

}  // namespace

void squared_norms_cuda(const TensorView& X, const TensorView& s, void* stream) {
  visit_element(X, [&](auto element) { squared_norms<decltype(element)>(X, s, stream); });
}

}  // namespace ntkfast
