#include "cuda/arguments.cuh"
#include "cuda/gram_add.cuh"

namespace ntkfast {
namespace {

template <class T>
GramAddArgs<T> gram_args(const TensorView& A, const TensorView& B, const GramRule& rule) {
  GramAddArgs<T> args{};
  args.rows = A.shape[0];
  args.cols = B.shape[0];
  args.rule = rule;
  return args;
}

template <class Gram, class Args>
Gram gram_of(Launcher& launcher, const TensorView& A, const TensorView& B, const Args& args) {
  const bool same = A.data == B.data && A.shape[0] == B.shape[0] && A.stride[0] == B.stride[0];
  return Gram(launcher, args, A.shape[1], same);
}

}  // namespace

std::int64_t gram_products_workspace(const TensorView& A, const TensorView& B, const GramRule& rule,
                                     const std::string& products) {
  require(A.ndim == 2 && B.ndim == 2, "A, B: expected matrices");
  std::int64_t bytes = 0;
  visit_products(products, [&](auto kind) {
    using Gram = typename GramOf<decltype(kind)>::type;
    using T = typename GramNumbers<decltype(kind)>::T;
    const DeviceGuard guard(common_device({&A, &B}));
    Launcher launcher(nullptr);
    bytes = gram_of<Gram>(launcher, A, B, gram_args<T>(A, B, rule)).bytes();
  });
  return bytes;
}

void gram_products(const TensorView& A, const TensorView& B, const TensorView& out,
                   const GramRule& rule, const std::string& products, const Workspace& workspace,
                   void* stream) {
  visit_products(products, [&](auto kind) {
    using Gram = typename GramOf<decltype(kind)>::type;
    using Element = typename GramNumbers<decltype(kind)>::Element;
    using T = typename GramNumbers<decltype(kind)>::T;
    const DeviceGuard guard(common_device({&A, &B, &out}));
    Launcher launcher(stream_of(stream));
    const MatrixView<Element> left = device_matrix<Element>(A, "A", -1, -1);
    const MatrixView<Element> right = device_matrix<Element>(B, "B", -1, left.cols);
    const MatrixView<T> to = device_matrix<T>(out, "out", left.rows, right.rows);
    GramAddArgs<T> args = gram_args<T>(A, B, rule);
    args.out = to.data;
    args.out_stride = to.row_stride;
    const Gram gram = gram_of<Gram>(launcher, A, B, args);
    check_workspace(workspace, gram.bytes());
    if (left.cols == 0) return;
    gram.launch(launcher,
                GramFactors<Element>{left.data, right.data, left.row_stride, right.row_stride},
                workspace.data, args);
  });
}

std::int64_t gram_add_cuda_workspace(const TensorView& A, const TensorView& B, bool lower,
                                     const std::string& products) {
  return gram_products_workspace(A, B, {lower}, products);
}
void gram_add_cuda(const TensorView& A, const TensorView& B, const TensorView& out, bool lower,
                   const std::string& products, const Workspace& workspace, void* stream) {
  gram_products(A, B, out, {lower}, products, workspace, stream);
}

}  // namespace ntkfast
