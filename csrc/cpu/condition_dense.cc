#include "cpu/condition_dense.h"

#include "core/check.h"
#include "cpu/gemm.h"

namespace ntkfast {
namespace {

template <class T>
void condition(const GemmKernels<double, double, double, T>& kernels, const TensorView& S_view,
               const TensorView& V_view) {
  const std::int64_t N = S_view.ndim == 2 ? S_view.shape[0] : -1;
  const MatrixView<T> S = matrix<T>(S_view, "S", N, N);
  const MatrixView<double> V = matrix<double>(V_view, "V", -1, N);
  if (V.rows == 0) return;
  // Both triangles are computed, with the same products in the same order, and rounded once.
  gemm(kernels, operand(V.transposed()), operand(V.transposed()), V.rows, S, -1.0, 1.0);
}

}  // namespace

void condition_dense_cpu(const TensorView& S, const TensorView& V) {
  if (S.dtype == DType::kFloat64) {
    condition<double>(kernels().linalg.dddd, S, V);
  } else {
    condition<float>(kernels().linalg.dddf, S, V);
  }
}

}  // namespace ntkfast
