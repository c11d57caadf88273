#include "cpu/triangular_solve.h"

#include <cmath>

#include "core/check.h"
#include "cpu/gemm.h"

namespace ntkfast {

void triangular_solve_cpu(const TensorView& L_view, const TensorView& X_view, bool transpose,
                          const Interrupt& interrupted) {
  const std::int64_t n = L_view.ndim == 2 ? L_view.shape[0] : -1;
  const MatrixView<double> L = matrix<double>(L_view, "L", n, n);
  const MatrixView<double> X = matrix<double>(X_view, "B", n, -1);
  for (std::int64_t i = 0; i < n; ++i)
    require(std::isfinite(L(i, i)) && L(i, i) != 0,
            "L: diagonal element " + std::to_string(i) + " is zero or not finite");

  constexpr std::int64_t kTriangle = 64;  // rows solved by substitution; the rest is products
  constexpr std::int64_t kStripe = 256;   // columns of one unit of work
  const LinalgKernels& linalg = kernels().linalg;
  const std::int64_t triangles = ceil_div(n, kTriangle);
  for (std::int64_t step = 0; step < triangles; ++step) {
    const std::int64_t i = (transpose ? triangles - 1 - step : step) * kTriangle;
    const std::int64_t rows = std::min(kTriangle, n - i);
    const MatrixView<double> X_i = X.part(i, 0, rows, X.cols);
    if (step > 0) {
      // X_i -= (row of L left of the triangle, or column below it) times what is solved; tall as
      // X^T.
      const std::int64_t from = transpose ? i + rows : 0;
      const std::int64_t depth = transpose ? n - from : i;
      const MatrixView<double> factor =
          transpose ? L.part(from, i, depth, rows).transposed() : L.part(i, 0, rows, depth);
      const MatrixView<double> solved = X.part(from, 0, depth, X.cols).transposed();
      gemm(linalg.dddd, operand(solved), operand(factor), depth, X_i.transposed(), -1.0, 1.0, false,
           interrupted);
    }
    parallel_for(
        ceil_div(X.cols, kStripe),
        [&](std::int64_t stripe, int) {
          linalg.solve_triangle(&L(i, i), L.row_stride, rows, X_i.data, X.row_stride,
                                stripe * kStripe, std::min(X.cols, (stripe + 1) * kStripe),
                                transpose);
        },
        interrupted);
  }
}

}  // namespace ntkfast
