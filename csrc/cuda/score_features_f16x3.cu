#include "cuda/score_products.cuh"

namespace ntkfast {

std::int64_t score_features_f16x3_cuda_workspace(const TensorView& psi, const ScoreCall& call) {
  return score_features_tensor_workspace<SplitFp16Products>(psi, call);
}
void score_features_f16x3_cuda(const TensorView& psi, const ScoreCall& call,
                               const Workspace& workspace, void* stream) {
  score_features_tensor<SplitFp16Products>(psi, call, workspace, stream);
}

}  // namespace ntkfast
