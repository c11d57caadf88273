#include "cpu/score_dense.h"

#include "core/check.h"
#include "cpu/score.h"

namespace ntkfast {
namespace {

template <class T>
void score_dense(const ScoreKernels<T>& kernels, const TensorView& S, const TensorView& downdate,
                 const ScoreCall& call, const Interrupt& interrupted) {
  const std::int64_t num_points = S.ndim == 2 ? S.shape[0] : -1;
  const MatrixView<T> covariance = matrix<T>(S, "S", num_points, num_points);
  Score<T> score{};
  score.dense = covariance.data;
  score.dense_stride = covariance.row_stride;
  if (downdate.ndim > 0) {
    const MatrixView<T> U = matrix<T>(downdate, "downdate", -1, num_points);
    score.depth = U.rows;
    score.candidate_factor.data = U.data;
    score.candidate_factor.row_stride = 1;
    score.candidate_factor.col_stride = U.row_stride;
    score.evaluation_factor = score.candidate_factor;
    score.candidate_factor.negate = true;
  }
  run_score(kernels, score, num_points, call, interrupted);
}

}  // namespace

void score_dense_cpu(const TensorView& S, const TensorView& downdate, const ScoreCall& call,
                     const Interrupt& interrupted) {
  if (S.dtype == DType::kFloat64) {
    score_dense<double>(kernels().score_double, S, downdate, call, interrupted);
  } else {
    score_dense<float>(kernels().score_float, S, downdate, call, interrupted);
  }
}

}  // namespace ntkfast
