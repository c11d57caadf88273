#include "cuda/arguments.cuh"
#include "cuda/gram_add.cuh"

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
struct IsPlain : std::false_type {};
template <class T>
struct IsPlain<PlainProducts<T>> : std::true_type {};

template <class Products>
GramOfRows<Products> gram_of_rows(Launcher& launcher, const TensorView& A, const TensorView& B,
                                  const GramAddArgs<float>& args) {
  const bool same = A.data == B.data && A.shape[0] == B.shape[0] && A.stride[0] == B.stride[0];
  return GramOfRows<Products>(launcher, args, A.shape[1], same);
}

template <class Element, class T>
GramAddArgs<T> gram_args(const MatrixView<Element>& left, const MatrixView<Element>& right,
                         const MatrixView<T>& out, bool lower) {
  GramAddArgs<T> args{};
  args.rows = left.rows;
  args.cols = right.rows;
  args.out = out.data;
  args.out_stride = out.row_stride;
  args.lower = lower;
  return args;
}

}  // namespace

std::int64_t gram_add_cuda_workspace(const TensorView& A, const TensorView& B, bool lower,
                                     const std::string& products) {
  require(A.ndim == 2 && B.ndim == 2, "A, B: expected matrices");
  std::int64_t bytes = 0;
  visit_gram_products(products, [&](auto kind) {
    using Products = decltype(kind);
    const DeviceGuard guard(common_device({&A, &B}));
    Launcher launcher(nullptr);
    if constexpr (IsPlain<Products>::value) {
      using T = typename Products::T;
      GramAddArgs<T> args{};
      args.rows = A.shape[0];
      args.cols = B.shape[0];
      args.lower = lower;
      const std::int64_t depth_bytes = A.shape[1] * std::int64_t{sizeof(T)};
      bytes = part_bytes<Products>(args, shares_of_matrices<Products>(launcher, args, depth_bytes));
    } else {
      GramAddArgs<float> args{};
      args.rows = A.shape[0];
      args.cols = B.shape[0];
      args.lower = lower;
      bytes = gram_of_rows<Products>(launcher, A, B, args).bytes();
    }
  });
  return bytes;
}

void gram_add_cuda(const TensorView& A, const TensorView& B, const TensorView& out, bool lower,
                   const std::string& products, const Workspace& workspace, void* stream) {
  visit_gram_products(products, [&](auto kind) {
    using Products = decltype(kind);
    const DeviceGuard guard(common_device({&A, &B, &out}));
    Launcher launcher(stream_of(stream));
    if constexpr (IsPlain<Products>::value) {
      using T = typename Products::T;
      const MatrixView<T> left = device_matrix<T>(A, "A", -1, -1);
      const MatrixView<T> right = device_matrix<T>(B, "B", -1, left.cols);
      auto args =
          gram_args(left, right, device_matrix<T>(out, "out", left.rows, right.rows), lower);
      if (left.cols == 0) return;
      args.left = tensor_operand(left.data, left.row_stride, left.cols);
      args.right = tensor_operand(right.data, right.row_stride, right.cols);
      const DepthShares shares =
          shares_of_matrices<Products>(launcher, args, args.left.depth_bytes);
      check_workspace(workspace, part_bytes<Products>(args, shares));
      launch_gram_add<Products>(launcher, args, shares, workspace.data);
    } else {
      using Element = SourceElement<Products>;
      const MatrixView<Element> left = device_matrix<Element>(A, "A", -1, -1);
      const MatrixView<Element> right = device_matrix<Element>(B, "B", -1, left.cols);
      const auto args =
          gram_args(left, right, device_matrix<float>(out, "out", left.rows, right.rows), lower);
      const GramOfRows<Products> gram = gram_of_rows<Products>(launcher, A, B, args);
      check_workspace(workspace, gram.bytes());
      if (left.cols == 0) return;
      gram.launch(launcher,
                  GramFactors<Element>{left.data, right.data, left.row_stride, right.row_stride},
                  workspace.data, args);
    }
  });
}

}  // namespace ntkfast
