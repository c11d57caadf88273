#include "cpu/product.h"

#include "core/check.h"
#include "cpu/gemm.h"

namespace ntkfast {
namespace {

template <class T>
void product(const GemmKernels<T, double, double, double>& kernels, const TensorView& X_view,
             const TensorView& B_view, const TensorView& Y_view, const Interrupt& interrupted) {
  const MatrixView<T> X = matrix<T>(X_view, "X", -1, -1);
  const MatrixView<double> B = matrix<double>(B_view, "B", X.cols, -1);
  const MatrixView<double> Y = matrix<double>(Y_view, "Y", X.rows, B.cols);
  gemm(kernels, operand(X), operand(B.transposed()), X.cols, Y, 1.0, 0.0, false, interrupted);
}

}  // namespace

void product_cpu(const TensorView& X, const TensorView& B, const TensorView& Y,
                 const Interrupt& interrupted) {
  if (X.dtype == DType::kFloat64) {
    product<double>(kernels().linalg.dddd, X, B, Y, interrupted);
  } else {
    product<float>(kernels().linalg.fddd, X, B, Y, interrupted);
  }
}

}  // namespace ntkfast
