// The launcher shared by score_features_{bf16,f16,f16x3}.cu.
#pragma once

#include "cuda/arguments.cuh"
#include "cuda/score_products.h"
#include "cuda/score_warpgroup.cuh"

namespace ntkfast {
namespace {

template <class Products>
std::int64_t score_features_tensor_workspace(const TensorView& psi, const ScoreCall& call) {
  const ScoreArgs<float> score = score_args<float>(call, psi.shape[0]);
  const DeviceGuard guard(score_device(psi, {}, call));
  Launcher launcher(nullptr);
  return score_tensor_bytes<Products>(launcher, score, psi.shape[1]);
}

template <class Products>
void score_features_tensor(const TensorView& psi, const ScoreCall& call, const Workspace& workspace,
                           void* stream) {
  using Element = SourceElement<Products>;
  const MatrixView<Element> features = device_matrix<Element>(psi, "psi", -1, -1);
  const ScoreArgs<float> score = score_args<float>(call, features.rows);
  const DeviceGuard guard(score_device(psi, {}, call));
  Launcher launcher(stream_of(stream));
  check_workspace(workspace, score_tensor_bytes<Products>(launcher, score, features.cols));
  launch_score_tensor<Products>(
      launcher, score, ScoreFeatures<Element>{features.data, features.row_stride, features.cols},
      workspace.data,
      [&](const PrepareArgs<float>& prepared) { prepare_scores_cuda(prepared, stream); });
}

}  // namespace
}  // namespace ntkfast
