#include "cuda/arguments.cuh"
#include "cuda/score_products.h"

namespace ntkfast {
namespace {

template <class T>
void score(ScoreArgs<T> args, int device, const Workspace& workspace, void* stream) {
  args.candidate_factor.index = args.candidates;
  args.evaluation_factor.index = args.evaluation;
  check_score_workspace(args, workspace, kPlainTile);
  const DeviceGuard guard(device);
  Launcher launcher(stream_of(stream));
  launch_score(launcher, args, workspace.data);
}

template <class T>
void score_features(const TensorView& psi, const ScoreCall& call, const Workspace& workspace,
                    void* stream) {
  const MatrixView<T> features = device_matrix<T>(psi, "psi", -1, -1);
  ScoreArgs<T> args = score_args<T>(call, features.rows);
  args.candidate_factor = args.evaluation_factor = {features.data, features.row_stride, 1};
  args.depth = features.cols;
  score(args, score_device(psi, {}, call), workspace, stream);
}

template <class T>
void score_dense(const TensorView& S, const TensorView& downdate, const ScoreCall& call,
                 const Workspace& workspace, void* stream) {
  const std::int64_t num_points = S.ndim == 2 ? S.shape[0] : -1;
  const MatrixView<T> covariance = device_matrix<T>(S, "S", num_points, num_points);
  ScoreArgs<T> args = score_args<T>(call, num_points);
  args.dense = covariance.data;
  args.dense_stride = covariance.row_stride;
  args.subtract = true;
  if (downdate.ndim > 0) {
    const MatrixView<T> U = device_matrix<T>(downdate, "downdate", -1, num_points);
    args.depth = U.rows;
    args.candidate_factor = args.evaluation_factor = {U.data, 1, U.row_stride};
  }
  score(args, score_device(S, downdate, call), workspace, stream);
}

}  // namespace

void prepare_scores_cuda(const PrepareArgs<float>& args, void* stream) {
  Launcher launcher(stream_of(stream));
  launch_prepare(launcher, args);
}

void score_features_plain_cuda(const TensorView& psi, const ScoreCall& call,
                               const Workspace& workspace, void* stream) {
  if (psi.dtype == DType::kFloat64) {
    score_features<double>(psi, call, workspace, stream);
  } else {
    score_features<float>(psi, call, workspace, stream);
  }
}

std::int64_t score_dense_cuda_workspace(const std::string& criterion, std::int64_t num_classes,
                                        std::int64_t num_candidates, std::int64_t num_evaluation,
                                        bool double_precision) {
  return score_sizes(criterion_index(criterion), num_classes, num_candidates, num_evaluation,
                     double_precision ? 8 : 4, kPlainTile)
      .total();
}

void score_dense_cuda(const TensorView& S, const TensorView& downdate, const ScoreCall& call,
                      const Workspace& workspace, void* stream) {
  if (S.dtype == DType::kFloat64) {
    score_dense<double>(S, downdate, call, workspace, stream);
  } else {
    score_dense<float>(S, downdate, call, workspace, stream);
  }
}

}  // namespace ntkfast
