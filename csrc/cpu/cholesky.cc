#include "cpu/cholesky.h"

#include <cmath>

#include "core/check.h"
#include "cpu/gemm.h"

namespace ntkfast {
namespace {

void factor_triangle(const MatrixView<double>& L, std::int64_t first_row) {
  for (std::int64_t j = 0; j < L.rows; ++j) {
    double diagonal = L(j, j);
    for (std::int64_t p = 0; p < j; ++p) diagonal -= L(j, p) * L(j, p);
    require(std::isfinite(diagonal) && diagonal > 0, "matrix is not positive definite (row " +
                                                         std::to_string(first_row + j) +
                                                         "): a larger ridge or noise makes it so");
    const double root = std::sqrt(diagonal);
    L(j, j) = root;
    for (std::int64_t i = j + 1; i < L.rows; ++i) {
      double sum = L(i, j);
      for (std::int64_t p = 0; p < j; ++p) sum -= L(i, p) * L(j, p);
      L(i, j) = sum / root;
    }
  }
}

}  // namespace

void cholesky_cpu(const TensorView& L_view, const Interrupt& interrupted) {
  constexpr std::int64_t kTriangle = 64;
  constexpr std::int64_t kStripe = 256;
  const LinalgKernels& linalg = kernels().linalg;
  const std::int64_t n = L_view.ndim == 2 ? L_view.shape[0] : -1;
  const MatrixView<double> L = matrix<double>(L_view, "A", n, n);
  const Buffer memory(kTriangle * n * std::int64_t{sizeof(double)});
  for (std::int64_t j = 0; j < n; j += kTriangle) {
    const std::int64_t width = std::min(kTriangle, n - j), below = n - j - width;
    factor_triangle(L.part(j, j, width, width), j);
    if (below == 0) break;
    // The panel is solved transposed, so that its rows lie along the lanes.
    const MatrixView<double> panel = L.part(j + width, j, below, width);
    const MatrixView<double> flipped{memory.as<double>(), width, below, below, 1};
    parallel_for(
        ceil_div(below, kStripe),
        [&](std::int64_t stripe, int) {
          const std::int64_t begin = stripe * kStripe, end = std::min(below, begin + kStripe);
          for (std::int64_t i = begin; i < end; ++i)
            for (std::int64_t p = 0; p < width; ++p) flipped(p, i) = panel(i, p);
          linalg.solve_triangle(&L(j, j), L.row_stride, width, flipped.data, flipped.row_stride,
                                begin, end, false);
          for (std::int64_t i = begin; i < end; ++i)
            for (std::int64_t p = 0; p < width; ++p) panel(i, p) = flipped(p, i);
        },
        interrupted);
    gemm(linalg.dddd, operand(panel), operand(panel), width,
         L.part(j + width, j + width, below, below), -1.0, 1.0, true, interrupted);
  }
  for (std::int64_t i = 0; i < n; ++i)
    for (std::int64_t j = i + 1; j < n; ++j) L(i, j) = 0;
}

}  // namespace ntkfast
