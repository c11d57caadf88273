#include "cuda/gram_add.cuh"

#include "cuda/arguments.cuh"

namespace ntkfast {
namespace {

/// Calls visit with the kind of products of this name (see operations.h).
template <class Visit>
void visit_gram_products(const std::string& products, const Visit& visit) {
  if (products == "fma32") {
    visit(PlainProducts<float>{});
  } else if (products == "fma64") {
    visit(PlainProducts<double>{});
  } else if (products == "bf16") {
    visit(Bf16Products{});
  } else if (products == "f16") {
    visit(Fp16Products{});
  } else if (products == "f16x3") {
    visit(SplitFp16Products{});
  } else {
    throw InvalidArgument("products: unknown name '" + products +
                          "'; expected fma32, fma64, bf16, f16 or f16x3");
  }
}

template <class Products>
SplitGram<Products> split_gram(const TensorView& A, const TensorView& B) {
  const bool same = A.data == B.data && A.shape[0] == B.shape[0] && A.stride[0] == B.stride[0];
  return SplitGram<Products>(A.shape[0], B.shape[0], A.shape[1], same);
}

}  // namespace

std::int64_t gram_add_cuda_workspace(const TensorView& A, const TensorView& B,
                                     const std::string& products) {
  require(A.ndim == 2 && B.ndim == 2, "A, B: expected matrices");
  std::int64_t bytes = 0;
  visit_gram_products(products, [&](auto kind) {
    using Products = decltype(kind);
    if constexpr (std::is_same<typename Products::Element, Float16>::value)
      bytes = split_gram<Products>(A, B).bytes();
  });
  return bytes;
}

void gram_add_cuda(const TensorView& A, const TensorView& B, const TensorView& out, bool lower,
                   const std::string& products, const Workspace& workspace, void* stream) {
  visit_gram_products(products, [&](auto kind) {
    using Products = decltype(kind);
    constexpr bool kSplitRows = std::is_same<typename Products::Element, Float16>::value;
    using Element = std::conditional_t<kSplitRows, float, typename Products::Element>;
    using T = std::conditional_t<std::is_same<Element, double>::value, double, float>;
    const MatrixView<Element> left = device_matrix<Element>(A, "A", -1, -1);
    const MatrixView<Element> right = device_matrix<Element>(B, "B", -1, left.cols);
    const MatrixView<T> sum = device_matrix<T>(out, "out", left.rows, right.rows);
    GramAddArgs<T> args{};
    args.rows = left.rows;
    args.cols = right.rows;
    args.out = sum.data;
    args.out_stride = sum.row_stride;
    args.lower = lower;
    const DeviceGuard guard(common_device({&A, &B, &out}));
    Launcher launcher(stream_of(stream));
    if constexpr (kSplitRows) {
      const SplitGram<Products> split = split_gram<Products>(A, B);
      check_workspace(workspace, split.bytes());
      if (left.cols == 0) return;
      split.launch(launcher, left.data, left.row_stride, right.data, right.row_stride,
                   workspace.data, args);
    } else {
      if (left.cols == 0) return;
      args.left = tensor_operand(left.data, left.row_stride, left.cols);
      args.right = tensor_operand(right.data, right.row_stride, right.cols);
      launch_gram_add<Products>(launcher, args);
    }
  });
}

}  // namespace ntkfast
