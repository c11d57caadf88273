// The tensor-core kernels, one translation unit per kind of products so that they compile side by
// side.
#pragma once

#include "cuda/operations.h"

namespace ntkfast {

void score_features_bf16_cuda(const TensorView& psi, const ScoreCall& call,
                              const Workspace& workspace, void* stream);
void score_features_tf32_cuda(const TensorView& psi, const ScoreCall& call,
                              const Workspace& workspace, void* stream);
void score_features_tf32x3_cuda(const TensorView& psi, const ScoreCall& call,
                                const Workspace& workspace, void* stream);
/// The kernels without tensor cores live with score_dense's, which are the same.
void score_features_plain_cuda(const TensorView& psi, const ScoreCall& call,
                               const Workspace& workspace, void* stream);

}  // namespace ntkfast
