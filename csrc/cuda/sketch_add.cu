#include "cuda/sketch_add.cuh"
#include "cuda/sketch_arguments.cuh"

namespace ntkfast {
namespace {

template <class T>
void sketch_add(const TensorView& values_view, std::int64_t start, std::uint64_t sign_key,
                std::uint64_t shift_key, const TensorView& out_view, const Workspace& workspace,
                void* stream) {
  const MatrixView<T> values = device_matrix<T>(values_view, "values", -1, -1);
  const MatrixView<T> out = device_matrix<T>(out_view, "out", values.rows, -1);
  check_sketch(start, values.cols, out.cols, workspace);
  const DeviceGuard guard(common_device({&values_view, &out_view}));
  if (values.rows == 0 || values.cols == 0) return;
  Launcher launcher(stream_of(stream));
  const SketchTable table = launch_sketch_table(launcher, start, values.cols, out.cols, sign_key,
                                                shift_key, workspace.data);
  launch_sketch_add(launcher, SketchAddArgs<T>{values.data, values.row_stride, values.rows, table,
                                               out.data, out.row_stride});
}

}  // namespace

std::int64_t sketch_cuda_workspace(std::int64_t start, std::int64_t count, std::int64_t dim) {
  require(start >= 0, "start: expected at least 0, got " + std::to_string(start));
  require(dim > 0, "out: expected at least one column");
  return sketch_table_bytes(start, count, dim);
}

void sketch_add_cuda(const TensorView& values, std::int64_t start, std::uint64_t sign_key,
                     std::uint64_t shift_key, const TensorView& out, const Workspace& workspace,
                     void* stream) {
  if (out.dtype == DType::kFloat64) {
    sketch_add<double>(values, start, sign_key, shift_key, out, workspace, stream);
  } else {
    sketch_add<float>(values, start, sign_key, shift_key, out, workspace, stream);
  }
}

}  // namespace ntkfast
