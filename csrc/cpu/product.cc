#include "cpu/product.h"

#include "core/check.h"
#include "cpu/gemm.h"

namespace ntkfast {
namespace {

constexpr std::int64_t kFewColumns = 32;  // up to which dot products beat padded tiles

template <class T, class Dots>
void product(const GemmKernels<T, double, double, double>& kernels, Dots dots,
             const TensorView& X_view, const TensorView& B_view, const TensorView& Y_view,
             const Interrupt& interrupted) {
  const MatrixView<T> X = matrix<T>(X_view, "X", -1, -1);
  const MatrixView<double> B = matrix<double>(B_view, "B", X.cols, -1);
  double* Y = contiguous<double>(Y_view, "Y", {X.rows, B.cols});
  if (B.cols > kFewColumns) {
    gemm(kernels, operand(X), operand(B.transposed()), X.cols,
         MatrixView<double>{Y, X.rows, B.cols, B.cols, 1}, 1.0, 0.0, false, interrupted);
    return;
  }
  constexpr std::int64_t kRows = 256;
  const Buffer memory(B.rows * B.cols * std::int64_t{sizeof(double)});
  double* columns = memory.as<double>();
  for (std::int64_t j = 0; j < B.cols; ++j)
    for (std::int64_t i = 0; i < B.rows; ++i) columns[j * B.rows + i] = B(i, j);
  parallel_for(
      ceil_div(X.rows, kRows),
      [&](std::int64_t unit, int) {
        const std::int64_t first = unit * kRows;
        dots(X.data + first * X.row_stride, X.row_stride, std::min(kRows, X.rows - first), X.cols,
             columns, B.rows, B.cols, Y + first * B.cols);
      },
      interrupted);
}

}  // namespace

void product_cpu(const TensorView& X, const TensorView& B, const TensorView& Y,
                 const Interrupt& interrupted) {
  const LinalgKernels& linalg = kernels().linalg;
  if (X.dtype == DType::kFloat64) {
    product<double>(linalg.dddd, linalg.dots_d, X, B, Y, interrupted);
  } else {
    product<float>(linalg.fddd, linalg.dots_f, X, B, Y, interrupted);
  }
}

}  // namespace ntkfast
