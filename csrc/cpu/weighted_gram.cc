#include "cpu/weighted_gram.h"

#include "core/check.h"
#include "cpu/gemm.h"

namespace ntkfast {
namespace {

template <class T>
void weighted_gram(const GemmKernels<T, T, double, double>& kernels, const TensorView& X_view,
                   const TensorView& weights_view, const TensorView& G_view,
                   const Interrupt& interrupted) {
  const MatrixView<T> X = matrix<T>(X_view, "X", -1, -1);
  const double* weights = contiguous<double>(weights_view, "weights", {X.rows});
  const MatrixView<double> G = matrix<double>(G_view, "G", X.cols, X.cols);
  Operand<T> scaled = operand(X.transposed());
  scaled.depth_scale = weights;
  gemm(kernels, scaled, operand(X.transposed()), X.rows, G, 1.0, 0.0, true, interrupted);
  for (std::int64_t i = 0; i < G.rows; ++i)
    for (std::int64_t j = i + 1; j < G.cols; ++j) G(i, j) = G(j, i);
}

}  // namespace

void weighted_gram_cpu(const TensorView& X, const TensorView& weights, const TensorView& G,
                       const Interrupt& interrupted) {
  if (X.dtype == DType::kFloat64) {
    weighted_gram<double>(kernels().linalg.dddd, X, weights, G, interrupted);
  } else {
    weighted_gram<float>(kernels().linalg.ffdd, X, weights, G, interrupted);
  }
}

}  // namespace ntkfast
