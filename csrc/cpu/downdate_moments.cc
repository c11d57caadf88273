#include "cpu/downdate_moments.h"

#include <algorithm>
#include <cmath>

#include "core/check.h"
#include "cpu/buffer.h"
#include "cpu/kernels.h"
#include "cpu/thread_pool.h"

namespace ntkfast {
namespace {

template <class T, class Dots>
void downdate(Dots dots, const TensorView& psi_view, const TensorView& g_view,
              const TensorView& h_view, double gGg, double D, const TensorView& q_view,
              const TensorView& s_view) {
  constexpr std::int64_t kRows = 256;
  const MatrixView<T> psi = matrix<T>(psi_view, "psi", -1, -1);
  const double* g = contiguous<double>(g_view, "g", {psi.cols});
  const double* h = contiguous<double>(h_view, "h", {psi.cols});
  double* q = contiguous<double>(q_view, "q", {psi.rows});
  double* s = contiguous<double>(s_view, "s", {psi.rows});
  require(std::isfinite(D) && D > 0, "D: expected a finite number > 0");
  const Buffer both(2 * psi.cols * std::int64_t{sizeof(double)});
  std::copy(g, g + psi.cols, both.as<double>());
  std::copy(h, h + psi.cols, both.as<double>() + psi.cols);
  parallel_for(ceil_div(psi.rows, kRows), [&](std::int64_t unit, int) {
    const std::int64_t first = unit * kRows, rows = std::min(kRows, psi.rows - first);
    double products[kRows * 2];  // <psi_x, g>, <psi_x, h>
    dots(psi.data + first * psi.row_stride, psi.row_stride, rows, psi.cols, both.as<double>(),
         psi.cols, 2, products);
    for (std::int64_t i = 0; i < rows; ++i) {
      const double alpha = products[2 * i], step = alpha / D;
      q[first + i] -= step * (2 * products[2 * i + 1] - step * gGg);
      s[first + i] -= step * alpha;
    }
  });
}

}  // namespace

void downdate_moments_cpu(const TensorView& psi, const TensorView& g, const TensorView& h,
                          double gGg, double D, const TensorView& q, const TensorView& s) {
  const LinalgKernels& linalg = kernels().linalg;
  if (psi.dtype == DType::kFloat64) {
    downdate<double>(linalg.dots_d, psi, g, h, gGg, D, q, s);
  } else {
    downdate<float>(linalg.dots_f, psi, g, h, gGg, D, q, s);
  }
}

}  // namespace ntkfast
