#include "cpu/downdate_moments.h"

#include <algorithm>
#include <cmath>

#include "core/check.h"
#include "cpu/buffer.h"
#include "cpu/kernels.h"
#include "cpu/thread_pool.h"

namespace ntkfast {
namespace {

template <class T, class TwoDots>
void downdate(TwoDots two_dots, const TensorView& psi_view, const TensorView& g_view,
              const TensorView& h_view, double gGg, double D, const TensorView& q_view,
              const TensorView& s_view) {
  constexpr std::int64_t kRows = 256;
  const MatrixView<T> psi = matrix<T>(psi_view, "psi", -1, -1);
  const double* g = contiguous<double>(g_view, "g", {psi.cols});
  const double* h = contiguous<double>(h_view, "h", {psi.cols});
  double* q = contiguous<double>(q_view, "q", {psi.rows});
  double* s = contiguous<double>(s_view, "s", {psi.rows});
  require(std::isfinite(D) && D > 0, "D: expected a finite number > 0");
  parallel_for(ceil_div(psi.rows, kRows), [&](std::int64_t unit, int) {
    const std::int64_t first = unit * kRows, rows = std::min(kRows, psi.rows - first);
    double alpha[kRows], beta[kRows];
    two_dots(psi.data + first * psi.row_stride, psi.row_stride, rows, psi.cols, g, h, alpha, beta);
    for (std::int64_t i = 0; i < rows; ++i) {
      const double step = alpha[i] / D;
      q[first + i] -= step * (2 * beta[i] - step * gGg);
      s[first + i] -= step * alpha[i];
    }
  });
}

}  // namespace

void downdate_moments_cpu(const TensorView& psi, const TensorView& g, const TensorView& h,
                          double gGg, double D, const TensorView& q, const TensorView& s) {
  const LinalgKernels& linalg = kernels().linalg;
  if (psi.dtype == DType::kFloat64) {
    downdate<double>(linalg.two_dots_d, psi, g, h, gGg, D, q, s);
  } else {
    downdate<float>(linalg.two_dots_f, psi, g, h, gGg, D, q, s);
  }
}

}  // namespace ntkfast
