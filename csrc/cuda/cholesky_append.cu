#include "cuda/arguments.cuh"
#include "cuda/matrix.cuh"

namespace ntkfast {

void cholesky_append_cuda(const TensorView& L_view, const TensorView& cross_view,
                          const TensorView& corner_view, const TensorView& out_view,
                          const TensorView& failed_view, void* stream) {
  const std::int64_t n = L_view.ndim == 2 ? L_view.shape[0] : -1;
  const std::int64_t m = corner_view.ndim == 2 ? corner_view.shape[0] : -1;
  const MatrixView<double> L = device_matrix<double>(L_view, "L", n, n);
  const MatrixView<double> cross = device_matrix<double>(cross_view, "cross", m, n);
  const MatrixView<double> corner = device_matrix<double>(corner_view, "corner", m, m);
  const MatrixView<double> out = device_matrix<double>(out_view, "out", n + m, n + m);
  std::int64_t* failed = device_array<std::int64_t>(failed_view, "failed", {1});
  const DeviceGuard guard(
      common_device({&L_view, &cross_view, &corner_view, &out_view, &failed_view}));
  Launcher launcher(stream_of(stream));
  launch_cholesky_append(launcher, L.data, L.row_stride, n, cross.data, cross.row_stride,
                         corner.data, corner.row_stride, m, out.data, out.row_stride, failed);
}

}  // namespace ntkfast
