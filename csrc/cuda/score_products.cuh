// The launcher shared by score_features_{bf16,f16,f16x3}.cu.
#pragma once

#include "cuda/arguments.cuh"
#include "cuda/score_products.h"
#include "cuda/score_warpgroup.cuh"

namespace ntkfast {
namespace {

template <class Products>
void score_features_tensor(const TensorView& psi, const ScoreCall& call, const Workspace& workspace,
                           void* stream) {
  constexpr bool kStored = std::is_same<typename Products::Element, BFloat16>::value;
  using Element = std::conditional_t<kStored, BFloat16, float>;
  const MatrixView<Element> features = device_matrix<Element>(psi, "psi", -1, -1);
  TensorScoreArgs args{};
  args.score = score_args<float>(call, features.rows);
  const std::int64_t needed = score_sizes(args.score, kTensorTiles).total();
  const SplitScore split(args.score, features.cols, Products::kSplit);
  check_workspace(workspace, needed + (kStored ? 0 : split.bytes()));
  const DeviceGuard guard(score_device(psi, {}, call));
  Launcher launcher(stream_of(stream));
  if constexpr (kStored) {
    args.candidates = args.points =
        tensor_operand(features.data, features.row_stride, features.cols);
    args.candidate_rows = args.score.candidates;
    args.point_rows = args.score.evaluation;
  } else {
    split.launch<Products::kSplit>(launcher, features.data, features.row_stride,
                                   static_cast<char*>(workspace.data) + needed, args);
  }
  launch_score_tensor<Products>(
      launcher, args, workspace.data,
      [&](const PrepareArgs<float>& prepared) { prepare_scores_cuda(prepared, stream); });
}

}  // namespace
}  // namespace ntkfast
