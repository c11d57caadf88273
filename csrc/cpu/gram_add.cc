#include "cpu/gram_add.h"

#include "core/check.h"
#include "cpu/gemm.h"

namespace ntkfast {
namespace {

template <class T>
void gram_add(const GemmKernels<T, T, T, T>& kernels, const TensorView& A_view,
              const TensorView& B_view, const TensorView& out_view, bool lower,
              const Interrupt& interrupted) {
  const MatrixView<T> A = matrix<T>(A_view, "A", -1, -1);
  const MatrixView<T> B = matrix<T>(B_view, "B", -1, A.cols);
  const MatrixView<T> out = matrix<T>(out_view, "out", A.rows, B.rows);
  if (A.cols == 0) return;
  gemm(kernels, operand(A), operand(B), A.cols, out, 1.0, 1.0, lower, interrupted);
}

}  // namespace

void gram_add_cpu(const TensorView& A, const TensorView& B, const TensorView& out, bool lower,
                  const Interrupt& interrupted) {
  if (out.dtype == DType::kFloat64) {
    gram_add<double>(kernels().linalg.dddd, A, B, out, lower, interrupted);
  } else {
    gram_add<float>(kernels().linalg.ffff, A, B, out, lower, interrupted);
  }
}

}  // namespace ntkfast
