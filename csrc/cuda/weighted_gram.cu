#include "cuda/arguments.cuh"
#include "cuda/weighted_gram.cuh"

namespace ntkfast {
namespace {

template <class T>
void weighted_gram(const TensorView& X_view, const TensorView& weights_view,
                   const TensorView& G_view, const Workspace& workspace, void* stream) {
  const MatrixView<T> X = device_matrix<T>(X_view, "X", -1, -1);
  WeightedGramArgs<T> args{};
  args.X = X.data;
  args.row_stride = X.row_stride;
  args.points = X.rows;
  args.cols = X.cols;
  args.weights = device_array<double>(weights_view, "weights", {X.rows});
  const MatrixView<double> G = device_matrix<double>(G_view, "G", X.cols, X.cols);
  args.G = G.data;
  args.G_stride = G.row_stride;
  check_workspace(workspace, weighted_gram_workspace(X.rows, X.cols));
  const DeviceGuard guard(common_device({&X_view, &weights_view, &G_view}));
  Launcher launcher(stream_of(stream));
  launch_weighted_gram(launcher, args, workspace.data);
}

}  // namespace

std::int64_t weighted_gram_cuda_workspace(std::int64_t num_points, std::int64_t num_features) {
  return weighted_gram_workspace(num_points, num_features);
}

void weighted_gram_cuda(const TensorView& X, const TensorView& weights, const TensorView& G,
                        const Workspace& workspace, void* stream) {
  visit_element(
      X, [&](auto element) { weighted_gram<decltype(element)>(X, weights, G, workspace, stream); });
}

}  // namespace ntkfast
