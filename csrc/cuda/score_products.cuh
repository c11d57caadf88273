// The launcher shared by score_features_{bf16,tf32,tf32x3}.cu.
#pragma once

#include "cuda/arguments.cuh"
#include "cuda/score_products.h"
#include "cuda/score_tensor.cuh"

namespace ntkfast {
namespace {

template <class Products>
void score_features_tensor(const TensorView& psi, const ScoreCall& call, const Workspace& workspace,
                           void* stream) {
  using Element = typename Products::Element;
  const MatrixView<Element> features = device_matrix<Element>(psi, "psi", -1, -1);
  TensorScoreArgs args{};
  args.score = score_args<float>(call, features.rows);
  args.features = tensor_operand(features.data, features.row_stride, features.cols);
  check_score_workspace(args.score, workspace, score_tile<Products>());
  const DeviceGuard guard(score_device(psi, {}, call));
  Launcher launcher(stream_of(stream));
  launch_score_tensor<Products>(
      launcher, args, workspace.data,
      [&](const PrepareArgs<float>& prepared) { prepare_scores_cuda(prepared, stream); });
}

}  // namespace
}  // namespace ntkfast
