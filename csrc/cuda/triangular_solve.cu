#include "cuda/arguments.cuh"
#include "cuda/matrix.cuh"

namespace ntkfast {

void triangular_solve_cuda(const TensorView& L_view, const TensorView& X_view, bool transpose,
                           void* stream) {
  const std::int64_t n = L_view.ndim == 2 ? L_view.shape[0] : -1;
  const MatrixView<double> L = device_matrix<double>(L_view, "L", n, n);
  const MatrixView<double> X = device_matrix<double>(X_view, "B", n, -1);
  const DeviceGuard guard(common_device({&L_view, &X_view}));
  Launcher launcher(stream_of(stream));
  launch_triangular_solve(launcher, L.data, L.row_stride, n, X.data, X.row_stride, 1, X.cols,
                          transpose);
}

}  // namespace ntkfast
