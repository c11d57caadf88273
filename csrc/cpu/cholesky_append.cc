#include "cpu/cholesky_append.h"

#include "core/check.h"
#include "cpu/cholesky.h"
#include "cpu/gemm.h"
#include "cpu/triangular_solve.h"

namespace ntkfast {

void cholesky_append_cpu(const TensorView& L_view, const TensorView& cross_view,
                         const TensorView& corner_view, const TensorView& out_view,
                         const Interrupt& interrupted) {
  const std::int64_t n = L_view.ndim == 2 ? L_view.shape[0] : -1;
  const std::int64_t m = corner_view.ndim == 2 ? corner_view.shape[0] : -1;
  const MatrixView<double> L = matrix<double>(L_view, "L", n, n);
  const MatrixView<double> cross = matrix<double>(cross_view, "cross", m, n);
  const MatrixView<double> corner = matrix<double>(corner_view, "corner", m, m);
  const MatrixView<double> out = matrix<double>(out_view, "out", n + m, n + m);
  for (std::int64_t i = 0; i < n; ++i) {
    for (std::int64_t j = 0; j < n + m; ++j) out(i, j) = j <= i ? L(i, j) : 0.0;
  }
  // L_new,old = (L^-1 cross^T)^T
  const Buffer memory(n * m * std::int64_t{sizeof(double)});
  const MatrixView<double> solved{memory.as<double>(), n, m, m, 1};
  for (std::int64_t i = 0; i < n; ++i)
    for (std::int64_t j = 0; j < m; ++j) solved(i, j) = cross(j, i);
  triangular_solve(L, solved, false, interrupted);
  for (std::int64_t j = 0; j < m; ++j) {
    for (std::int64_t i = 0; i < n; ++i) out(n + j, i) = solved(i, j);
    for (std::int64_t i = 0; i < m; ++i) out(n + j, n + i) = corner(j, i);
  }
  const MatrixView<double> rows = out.block(n, 0, m, n), rest = out.block(n, n, m, m);
  gemm(kernels().linalg.dddd, operand(rows), operand(rows), n, rest, -1.0, 1.0, false, interrupted);
  cholesky(rest, n, interrupted);
}

}  // namespace ntkfast
