#include "cuda/arguments.cuh"
#include "cuda/matrix.cuh"

namespace ntkfast {
namespace {

template <class T>
void condition(const TensorView& psi_view, const TensorView& U_view, const TensorView& C_view,
               const Workspace& workspace, void* stream) {
  const MatrixView<T> psi = device_matrix<T>(psi_view, "psi", -1, -1);
  const MatrixView<double> U = device_matrix<double>(U_view, "U", -1, psi.cols);
  const MatrixView<double> C = device_matrix<double>(C_view, "C", U.rows, psi.cols);
  check_workspace(workspace, condition_features_cuda_workspace(psi.rows, U.rows));
  const DeviceGuard guard(common_device({&psi_view, &U_view, &C_view}));
  Launcher launcher(stream_of(stream));
  launch_condition_features<T>(launcher, psi.data, psi.row_stride, psi.rows, psi.cols, U.data,
                               U.row_stride, C.data, C.row_stride, U.rows,
                               static_cast<double*>(workspace.data));
}

}  // namespace

std::int64_t condition_features_cuda_workspace(std::int64_t num_points, std::int64_t rank) {
  return num_points * rank * std::int64_t{sizeof(double)};
}

void condition_features_cuda(const TensorView& psi, const TensorView& U, const TensorView& C,
                             const Workspace& workspace, void* stream) {
  if (psi.dtype == DType::kFloat64) {
    condition<double>(psi, U, C, workspace, stream);
  } else {
    condition<float>(psi, U, C, workspace, stream);
  }
}

}  // namespace ntkfast
