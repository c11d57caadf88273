#include "cpu/score_features.h"

#include "core/check.h"
#include "cpu/score.h"

namespace ntkfast {
namespace {

template <class T>
void score_features(const ScoreKernels<T>& kernels, const TensorView& psi, const ScoreCall& call,
                    const Interrupt& interrupted) {
  const MatrixView<T> features = matrix<T>(psi, "psi", -1, -1);
  Score<T> score{};
  score.depth = features.cols;
  score.candidate_factor.data = features.data;
  score.candidate_factor.row_stride = features.row_stride;
  score.evaluation_factor = score.candidate_factor;
  run_score(kernels, score, features.rows, call, interrupted);
}

}  // namespace

void score_features_cpu(const TensorView& psi, const ScoreCall& call,
                        const Interrupt& interrupted) {
  if (psi.dtype == DType::kFloat64) {
    score_features<double>(kernels().score_double, psi, call, interrupted);
  } else {
    score_features<float>(kernels().score_float, psi, call, interrupted);
  }
}

}  // namespace ntkfast
