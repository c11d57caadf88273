#include "cuda/score_products.cuh"

namespace ntkfast {

void score_features_tf32x3_cuda(const TensorView& psi, const ScoreCall& call,
                                const Workspace& workspace, void* stream) {
  score_features_tensor<SplitTf32Products>(psi, call, workspace, stream);
}

}  // namespace ntkfast
