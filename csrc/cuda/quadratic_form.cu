#include "cuda/arguments.cuh"
#include "cuda/matrix.cuh"

namespace ntkfast {
namespace {

template <class T>
void quadratic_form(const TensorView& X_view, const TensorView& G_view, const TensorView& q_view,
                    void* stream) {
  const MatrixView<T> X = device_matrix<T>(X_view, "X", -1, -1);
  const MatrixView<double> G = device_matrix<double>(G_view, "G", X.cols, X.cols);
  double* q = device_array<double>(q_view, "q", {X.rows});
  const DeviceGuard guard(common_device({&X_view, &G_view, &q_view}));
  Launcher launcher(stream_of(stream));
  launch_quadratic_form(launcher,
                        RowArgs<T>{X.data, X.row_stride, X.rows, X.cols, G.data, G.row_stride, q});
}

}  // namespace

void quadratic_form_cuda(const TensorView& X, const TensorView& G, const TensorView& q,
                         void* stream) {
  visit_element(X, [&](auto element) { quadratic_form<decltype(element)>(X, G, q, stream); });
}

}  // namespace ntkfast
