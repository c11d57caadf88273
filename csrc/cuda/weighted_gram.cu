#include "cuda/arguments.cuh"
#include "cuda/matrix.cuh"

namespace ntkfast {
namespace {

template <class T>
void weighted_gram(const TensorView& X_view, const TensorView& weights_view,
                   const TensorView& G_view, void* stream) {
  const MatrixView<T> X = device_matrix<T>(X_view, "X", -1, -1);
  const double* weights = device_array<double>(weights_view, "weights", {X.rows});
  const MatrixView<double> G = device_matrix<double>(G_view, "G", X.cols, X.cols);
  const DeviceGuard guard(common_device({&X_view, &weights_view, &G_view}));
  GemmArgs<T, T, double> args{{X.data, 1, X.row_stride},
                              {X.data, 1, X.row_stride},
                              X.cols,
                              X.cols,
                              X.rows,
                              G.data,
                              G.row_stride,
                              1,
                              1.0,
                              0.0,
                              Part::kMirrored};
  args.left.depth_scale = weights;
  Launcher launcher(stream_of(stream));
  launch_gemm<double>(launcher, args);
}

}  // namespace

void weighted_gram_cuda(const TensorView& X, const TensorView& weights, const TensorView& G,
                        void* stream) {
  visit_element(X, [&](auto element) { weighted_gram<decltype(element)>(X, weights, G, stream); });
}

}  // namespace ntkfast
