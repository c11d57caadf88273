#include "cpu/condition_features.h"

#include "core/check.h"
#include "cpu/gemm.h"

namespace ntkfast {
namespace {

template <class T>
void condition(const GemmKernels<T, double, T, T>& kernels, const TensorView& psi_view,
               const TensorView& U_view, const TensorView& C_view) {
  const MatrixView<T> psi = matrix<T>(psi_view, "psi", -1, -1);
  const MatrixView<double> U = matrix<double>(U_view, "U", -1, psi.cols);
  const MatrixView<double> C = matrix<double>(C_view, "C", U.rows, psi.cols);
  const std::int64_t rank = U.rows;
  if (rank == 0 || psi.rows == 0) return;
  const Buffer memory(psi.rows * rank * std::int64_t{sizeof(T)});
  const MatrixView<T> projection{memory.as<T>(), psi.rows, rank, rank, 1};
  gemm(kernels, operand(psi), operand(U), psi.cols, projection, 1.0, 0.0);
  gemm(kernels, operand(projection), operand(C.transposed()), rank, psi, -1.0, 1.0);
}

}  // namespace

void condition_features_cpu(const TensorView& psi, const TensorView& U, const TensorView& C) {
  if (psi.dtype == DType::kFloat64) {
    condition<double>(kernels().linalg.dddd, psi, U, C);
  } else {
    condition<float>(kernels().linalg.fdff, psi, U, C);
  }
}

}  // namespace ntkfast
