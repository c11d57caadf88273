#include "cuda/sketch_arguments.cuh"
#include "cuda/sketch_gradients.cuh"

namespace ntkfast {
namespace {

template <class T>
GatheredRows<T> gathered(const FactorView& view, const std::string& name, std::int64_t samples,
                         std::int64_t positions) {
  const MatrixView<T> data = device_matrix<T>(view.data, name.c_str(), samples, -1);
  return {data.data, data.row_stride,
          device_array<std::int64_t>(view.positions, (name + "_positions").c_str(), {positions}),
          device_array<std::int64_t>(view.columns, (name + "_columns").c_str(), {-1})};
}

template <class T>
void sketch_gradients(const FactorView& left, const FactorView& right, std::int64_t groups,
                      std::int64_t start, std::uint64_t sign_key, std::uint64_t shift_key,
                      const TensorView& out_view, const Workspace& workspace, void* stream) {
  const MatrixView<T> out = device_matrix<T>(out_view, "out", -1, -1);
  const GatheredRows<T> a = gathered<T>(left, "left", out.rows, -1);
  const std::int64_t depth = left.positions.shape[0];
  const GatheredRows<T> b = gathered<T>(right, "right", out.rows, depth);
  const std::int64_t all_rows = left.columns.shape[0], all_cols = right.columns.shape[0];
  check_groups(groups, all_rows, all_cols);
  const std::int64_t size = all_cols / groups, count = all_rows * size;
  constexpr std::int64_t kMost = std::int64_t{1} << 30;
  require(depth <= kMost && all_rows <= kMost && all_cols <= kMost,
          "left and right: expected at most 2^30 positions and columns");
  check_sketch(start, count, out.cols, workspace);
  const DeviceGuard guard(common_device({&left.data, &left.positions, &left.columns, &right.data,
                                         &right.positions, &right.columns, &out_view}));
  if (out.rows == 0 || depth == 0 || count == 0) return;
  Launcher launcher(stream_of(stream));
  const SketchTable table =
      launch_sketch_table(launcher, start, count, out.cols, sign_key, shift_key, workspace.data);
  SketchGradientsArgs<T> args{};
  args.left = a;
  args.right = b;
  args.samples = out.rows;
  args.depth = static_cast<int>(depth);
  args.groups = static_cast<int>(groups);
  args.rows = static_cast<int>(all_rows / groups);
  args.size = static_cast<int>(size);
  args.sketch = table;
  args.out = out.data;
  args.out_stride = out.row_stride;
  launch_sketch_gradients(launcher, args);
}

}  // namespace

void sketch_gradients_cuda(const FactorView& left, const FactorView& right, std::int64_t groups,
                           std::int64_t start, std::uint64_t sign_key, std::uint64_t shift_key,
                           const TensorView& out, const Workspace& workspace, void* stream) {
  if (out.dtype == DType::kFloat64) {
    sketch_gradients<double>(left, right, groups, start, sign_key, shift_key, out, workspace,
                             stream);
  } else {
    sketch_gradients<float>(left, right, groups, start, sign_key, shift_key, out, workspace,
                            stream);
  }
}

}  // namespace ntkfast
