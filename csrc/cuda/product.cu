#include "cuda/arguments.cuh"
#include "cuda/matrix.cuh"
#include "cuda/row_products.cuh"

namespace ntkfast {
namespace {

template <class T>
void product(const TensorView& X_view, const TensorView& B_view, const TensorView& Y_view,
             void* stream) {
  const MatrixView<T> X = device_matrix<T>(X_view, "X", -1, -1);
  const MatrixView<double> B = device_matrix<double>(B_view, "B", X.cols, -1);
  const MatrixView<double> Y = device_matrix<double>(Y_view, "Y", X.rows, B.cols);
  const DeviceGuard guard(common_device({&X_view, &B_view, &Y_view}));
  Launcher launcher(stream_of(stream));
  if (Y.cols <= kMostRowProducts) {
    if (Y.cols > 0)
      launch_row_products(
          launcher, RowProductsArgs<T>{X.data, X.row_stride, X.rows, X.cols, B.data, B.row_stride,
                                       static_cast<int>(Y.cols), Y.data, Y.row_stride});
    return;
  }
  launch_gemm<double>(launcher, GemmArgs<T, double, double>{{X.data, X.row_stride, 1},
                                                            {B.data, 1, B.row_stride},
                                                            Y.rows,
                                                            Y.cols,
                                                            X.cols,
                                                            Y.data,
                                                            Y.row_stride,
                                                            1,
                                                            1.0,
                                                            0.0});
}

}  // namespace

void product_cuda(const TensorView& X, const TensorView& B, const TensorView& Y, void* stream) {
  visit_element(X, [&](auto element) { product<decltype(element)>(X, B, Y, stream); });
}

}  // namespace ntkfast
