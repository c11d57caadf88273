#include "cpu/squared_norms.h"

#include <algorithm>

#include "core/check.h"
#include "cpu/buffer.h"
#include "cpu/kernels.h"
#include "cpu/thread_pool.h"

namespace ntkfast {
namespace {

template <class T, class Dot>
void squared_norms(Dot dot_rows, const TensorView& X_view, const TensorView& s_view) {
  constexpr std::int64_t kRows = 512;
  const MatrixView<T> X = matrix<T>(X_view, "X", -1, -1);
  double* s = contiguous<double>(s_view, "s", {X.rows});
  parallel_for(ceil_div(X.rows, kRows), [&](std::int64_t unit, int) {
    const std::int64_t i = unit * kRows, rows = std::min(kRows, X.rows - i);
    const T* x = X.data + i * X.row_stride;
    dot_rows(x, X.row_stride, x, X.row_stride, rows, X.cols, s + i);
  });
}

}  // namespace

void squared_norms_cpu(const TensorView& X, const TensorView& s) {
  if (X.dtype == DType::kFloat64) {
    squared_norms<double>(kernels().linalg.dot_rows_dd, X, s);
  } else {
    squared_norms<float>(kernels().linalg.dot_rows_ff, X, s);
  }
}

}  // namespace ntkfast
