#include "cuda/score_products.cuh"

namespace ntkfast {

void score_features_bf16_cuda(const TensorView& psi, const ScoreCall& call,
                              const Workspace& workspace, void* stream) {
  score_features_tensor<Bf16Products>(psi, call, workspace, stream);
}

}  // namespace ntkfast
