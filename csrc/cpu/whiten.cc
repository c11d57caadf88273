#include "cpu/whiten.h"

#include "core/check.h"
#include "cpu/gemm.h"

namespace ntkfast {
namespace {

template <class T>
void whiten(const GemmKernels<T, double, double, T>& kernels, const TensorView& features_view,
            const TensorView& W_view, const TensorView& psi_view, const Interrupt& interrupted) {
  const MatrixView<T> features = matrix<T>(features_view, "features", -1, -1);
  const MatrixView<double> W = matrix<double>(W_view, "W", features.cols, features.cols);
  const MatrixView<T> psi = matrix<T>(psi_view, "psi", features.rows, features.cols);
  if (features.cols <= 4096) {
    gemm(kernels, operand(features), operand(W), features.cols, psi, 1.0, 0.0, false, interrupted);
    return;
  }
  // Deeper products accumulate in the output between slices: keep that in double too.
  constexpr std::int64_t kRows = 1024;
  const Buffer memory(kRows * psi.cols * std::int64_t{sizeof(double)});
  const auto& to_double = [&](const MatrixView<T>& rows, const MatrixView<double>& sums) {
    if constexpr (sizeof(T) == 4) {
      gemm(ntkfast::kernels().linalg.fddd, operand(rows), operand(W), rows.cols, sums, 1.0, 0.0,
           false, interrupted);
    } else {
      gemm(ntkfast::kernels().linalg.dddd, operand(rows), operand(W), rows.cols, sums, 1.0, 0.0,
           false, interrupted);
    }
  };
  for (std::int64_t i = 0; i < psi.rows; i += kRows) {
    const std::int64_t rows = std::min(kRows, psi.rows - i);
    const MatrixView<double> sums{memory.as<double>(), rows, psi.cols, psi.cols, 1};
    to_double(features.part(i, 0, rows, features.cols), sums);
    for (std::int64_t r = 0; r < rows; ++r)
      for (std::int64_t j = 0; j < psi.cols; ++j) psi(i + r, j) = static_cast<T>(sums(r, j));
  }
}

}  // namespace

void whiten_cpu(const TensorView& features, const TensorView& W, const TensorView& psi,
                const Interrupt& interrupted) {
  if (features.dtype == DType::kFloat64) {
    whiten<double>(kernels().linalg.dddd, features, W, psi, interrupted);
  } else {
    whiten<float>(kernels().linalg.fddf, features, W, psi, interrupted);
  }
}

}  // namespace ntkfast
