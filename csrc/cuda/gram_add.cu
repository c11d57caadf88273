#include "cuda/arguments.cuh"
#include "cuda/gram_add.cuh"

namespace ntkfast {

void gram_add_cuda(const TensorView& A, const TensorView& B, const TensorView& out, bool lower,
                   const std::string& kind, void* stream) {
  visit_products(kind, [&](auto products) {
    using Products = decltype(products);
    using Element = typename Products::Element;
    using T = typename Products::T;
    const MatrixView<Element> left = device_matrix<Element>(A, "A", -1, -1);
    const MatrixView<Element> right = device_matrix<Element>(B, "B", -1, left.cols);
    const MatrixView<T> sum = device_matrix<T>(out, "out", left.rows, right.rows);
    const DeviceGuard guard(common_device({&A, &B, &out}));
    if (left.cols == 0) return;
    Launcher launcher(stream_of(stream));
    launch_gram_add<Products>(
        launcher, GramAddArgs<T>{tensor_operand(left.data, left.row_stride, left.cols),
                                 tensor_operand(right.data, right.row_stride, right.cols),
                                 left.rows, right.rows, sum.data, sum.row_stride, lower});
  });
}

}  // namespace ntkfast
