#include "cuda/score_products.cuh"

namespace ntkfast {

void score_features_f16x3_cuda(const TensorView& psi, const ScoreCall& call,
                               const Workspace& workspace, void* stream) {
  score_features_tensor<SplitFp16Products>(psi, call, workspace, stream);
}

}  // namespace ntkfast
