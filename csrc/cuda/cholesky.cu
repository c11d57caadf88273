#include "cuda/arguments.cuh"
#include "cuda/matrix.cuh"

namespace ntkfast {

void cholesky_cuda(const TensorView& L_view, const TensorView& failed_view, void* stream) {
  const std::int64_t n = L_view.ndim == 2 ? L_view.shape[0] : -1;
  const MatrixView<double> L = device_matrix<double>(L_view, "A", n, n);
  std::int64_t* failed = device_array<std::int64_t>(failed_view, "failed", {1});
  const DeviceGuard guard(common_device({&L_view, &failed_view}));
  Launcher launcher(stream_of(stream));
  launch_cholesky(launcher, L.data, L.row_stride, n, failed);
}

}  // namespace ntkfast
