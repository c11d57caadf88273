#include "cuda/arguments.cuh"
#include "cuda/score_blocks.cuh"

namespace ntkfast {
namespace {

template <class T>
void score_blocks(const TensorView& covariance, const TensorView& evaluation_variance,
                  const ScoreCall& call, const TensorView& wrong, const Workspace& workspace,
                  void* stream) {
  BlockArgs<T> args{};
  static_cast<ScoreInputs&>(args) =
      check_score_call(call, call.mean.ndim == 2 ? call.mean.shape[0] : -1, Device::kCuda);
  const std::int64_t k = args.classes, num_candidates = args.num_candidates,
                     num_evaluation = args.num_evaluation;
  const unsigned traits = criterion_traits(args.criterion);
  require(!(traits & kReadsCovered),
          "criterion '" + call.criterion + "' is of a scalar kernel, and this one has blocks");
  const MatrixView<T> S =
      device_matrix<T>(covariance, "covariance", num_candidates * k, k * num_evaluation);
  args.covariance = S.data;
  args.covariance_stride = S.row_stride;
  args.variance = device_array<double>(call.variance, "variance", {num_candidates, k, k});
  if (evaluation_variance.ndim > 0)
    args.evaluation_variance =
        device_array<double>(evaluation_variance, "evaluation_variance", {num_evaluation, k, k});
  require(evaluation_variance.ndim > 0 || !(traits & kReadsPointVariance),
          "evaluation_variance: criterion '" + call.criterion + "' needs it");
  args.wrong = device_array<std::int64_t>(wrong, "wrong", {num_candidates + num_evaluation});
  args.utilities = static_cast<double*>(call.utilities.data);
  const BlockPlan plan =
      plan_blocks(args.criterion, k, num_candidates, num_evaluation, int{sizeof(T)});
  check_workspace(workspace, plan.total());
  const int device = score_device(covariance, evaluation_variance, call);
  require(common_device({&covariance, &wrong}) == device, "wrong: on another device");
  const DeviceGuard guard(device);
  Launcher launcher(stream_of(stream));
  launch_score_blocks(launcher, args, plan, workspace.data);
}

}  // namespace

std::int64_t score_blocks_cuda_workspace(const std::string& criterion, std::int64_t num_classes,
                                         std::int64_t num_candidates, std::int64_t num_evaluation,
                                         bool double_precision) {
  return plan_blocks(criterion_index(criterion), num_classes, num_candidates, num_evaluation,
                     double_precision ? 8 : 4)
      .total();
}

void score_blocks_cuda(const TensorView& covariance, const TensorView& evaluation_variance,
                       const ScoreCall& call, const TensorView& wrong, const Workspace& workspace,
                       void* stream) {
  if (covariance.dtype == DType::kFloat64) {
    score_blocks<double>(covariance, evaluation_variance, call, wrong, workspace, stream);
  } else {
    score_blocks<float>(covariance, evaluation_variance, call, wrong, workspace, stream);
  }
}

}  // namespace ntkfast
