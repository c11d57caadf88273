// The tensor-core kernels, one translation unit per kind of products so that they compile side by
// side.
#pragma once

#include "core/score_inputs.h"
#include "cuda/operations.h"

namespace ntkfast {

/// What is prepared of points and candidates before pairs are scored, in compute type T, in bundles
/// (score.cuh).
template <class T>
struct PrepareArgs : ScoreInputs {
  const double* variance;   // of all points
  T* points;                // 1 + point_size planes, first the weights
  T* prepared;              // candidate_size planes
  bool candidates_in_rows;  // not all in planes: score.cuh
  int64_t padded_points, padded_candidates;
};
/// Compiled once for all kinds of products.
void prepare_scores_cuda(const PrepareArgs<float>& args, void* stream);

std::int64_t score_features_bf16_cuda_workspace(const TensorView& psi, const ScoreCall& call);
void score_features_bf16_cuda(const TensorView& psi, const ScoreCall& call,
                              const Workspace& workspace, void* stream);
std::int64_t score_features_f16_cuda_workspace(const TensorView& psi, const ScoreCall& call);
void score_features_f16_cuda(const TensorView& psi, const ScoreCall& call,
                             const Workspace& workspace, void* stream);
std::int64_t score_features_f16x3_cuda_workspace(const TensorView& psi, const ScoreCall& call);
void score_features_f16x3_cuda(const TensorView& psi, const ScoreCall& call,
                               const Workspace& workspace, void* stream);
/// The kernels without tensor cores live with score_dense's, which are the same.
void score_features_plain_cuda(const TensorView& psi, const ScoreCall& call,
                               const Workspace& workspace, void* stream);

}  // namespace ntkfast
