#include "cpu/quadratic_form.h"

#include "core/check.h"
#include "cpu/gemm.h"

namespace ntkfast {
namespace {

constexpr std::int64_t kProductRowsHeld = 2048;  // rows of X G held at a time

template <class T, class Dot>
void quadratic_form(const GemmKernels<T, double, double, double>& kernels, Dot dot_rows,
                    const TensorView& X_view, const TensorView& G_view, const TensorView& q_view,
                    const Interrupt& interrupted) {
  const MatrixView<T> X = matrix<T>(X_view, "X", -1, -1);
  const MatrixView<double> G = matrix<double>(G_view, "G", X.cols, X.cols);
  double* q = contiguous<double>(q_view, "q", {X.rows});
  const Buffer memory(std::min(kProductRowsHeld, X.rows) * X.cols * std::int64_t{sizeof(double)});
  for (std::int64_t i = 0; i < X.rows; i += kProductRowsHeld) {
    const MatrixView<T> rows = X.part(i, 0, std::min(kProductRowsHeld, X.rows - i), X.cols);
    const MatrixView<double> image{memory.as<double>(), rows.rows, X.cols, X.cols, 1};
    gemm(kernels, operand(rows), operand(G.transposed()), X.cols, image, 1.0, 0.0, false,
         interrupted);
    dot_rows(rows.data, rows.row_stride, image.data, image.row_stride, rows.rows, X.cols, q + i);
  }
}

}  // namespace

void quadratic_form_cpu(const TensorView& X, const TensorView& G, const TensorView& q,
                        const Interrupt& interrupted) {
  const LinalgKernels& linalg = kernels().linalg;
  if (X.dtype == DType::kFloat64) {
    quadratic_form<double>(linalg.dddd, linalg.dot_rows_dd, X, G, q, interrupted);
  } else {
    quadratic_form<float>(linalg.fddd, linalg.dot_rows_fd, X, G, q, interrupted);
  }
}

}  // namespace ntkfast
