#include "cpu/condition_features.h"

#include "core/check.h"
#include "cpu/gemm.h"

namespace ntkfast {
namespace {

constexpr std::int64_t kPsiRowsHeld = 4096;  // rows of psi U^T held at a time

template <class T, class Dots, class Subtract>
void condition(const GemmKernels<T, double, double, double>& project,
               const GemmKernels<double, double, double, T>& update, Dots dots, Subtract subtract,
               const TensorView& psi_view, const TensorView& U_view, const TensorView& C_view) {
  const MatrixView<T> psi = matrix<T>(psi_view, "psi", -1, -1);
  const MatrixView<double> U = matrix<double>(U_view, "U", -1, psi.cols);
  const MatrixView<double> C = matrix<double>(C_view, "C", U.rows, psi.cols);
  const std::int64_t rank = U.rows;
  if (rank == 0 || psi.rows == 0) return;
  if (rank <= kFewLabels) {
    constexpr std::int64_t kFewRows = 64;  // stay in cache between the two steps
    parallel_for(ceil_div(psi.rows, kFewRows), [&](std::int64_t unit, int) {
      const std::int64_t first = unit * kFewRows, rows = std::min(kFewRows, psi.rows - first);
      double projection[kFewRows * kFewLabels];
      T* x = psi.data + first * psi.row_stride;
      dots(x, psi.row_stride, rows, psi.cols, U.data, U.row_stride, rank, projection);
      subtract(x, psi.row_stride, rows, psi.cols, projection, C.data, C.row_stride, rank);
    });
    return;
  }
  const Buffer memory(std::min(kPsiRowsHeld, psi.rows) * rank * std::int64_t{sizeof(double)});
  for (std::int64_t i = 0; i < psi.rows; i += kPsiRowsHeld) {
    const MatrixView<T> rows = psi.part(i, 0, std::min(kPsiRowsHeld, psi.rows - i), psi.cols);
    const MatrixView<double> projection{memory.as<double>(), rows.rows, rank, rank, 1};
    gemm(project, operand(rows), operand(U), psi.cols, projection, 1.0, 0.0);
    gemm(update, operand(projection), operand(C.transposed()), rank, rows, -1.0, 1.0);
  }
}

}  // namespace

void condition_features_cpu(const TensorView& psi, const TensorView& U, const TensorView& C) {
  const LinalgKernels& linalg = kernels().linalg;
  if (psi.dtype == DType::kFloat64) {
    condition<double>(linalg.dddd, linalg.dddd, linalg.dots_d, linalg.subtract_d, psi, U, C);
  } else {
    condition<float>(linalg.fddd, linalg.dddf, linalg.dots_f, linalg.subtract_f, psi, U, C);
  }
}

}  // namespace ntkfast
