// What the launchers check before they launch.
#pragma once

#include <cmath>
#include <initializer_list>

#include "core/check.h"
#include "core/score_call.h"
#include "cpu/score.h"
#include "cuda/launch.cuh"
#include "cuda/operations.h"
#include "cuda/score.cuh"

namespace ntkfast {

template <>
struct DTypeOf<BFloat16> {
  static constexpr DType value = DType::kBFloat16;
};

namespace {

template <class T>
MatrixView<T> device_matrix(const TensorView& view, const char* name, std::int64_t rows,
                            std::int64_t cols) {
  return matrix<T>(view, name, rows, cols, Device::kCuda);
}
template <class T>
T* device_array(const TensorView& view, const char* name,
                std::initializer_list<std::int64_t> shape) {
  return contiguous<T>(view, name, shape, Device::kCuda);
}

/// Calls visitor(element) with a number of the element type of features that are read only.
template <class Visitor>
void visit_element(const TensorView& features, Visitor&& visitor) {
  if (features.dtype == DType::kFloat64) {
    visitor(double{});
  } else if (features.dtype == DType::kBFloat16) {
    visitor(BFloat16{});
  } else {
    visitor(float{});
  }
}

/// Number of the device all views lie on; views with ndim 0 are absent.
inline int common_device(std::initializer_list<const TensorView*> views) {
  const TensorView* first = nullptr;
  for (const TensorView* view : views) {
    if (view->ndim == 0) continue;
    if (!first) first = view;
    require(view->device_index == first->device_index,
            "all arrays of a call must be on one device, got devices " +
                std::to_string(first->device_index) + " and " + std::to_string(view->device_index));
  }
  return first ? first->device_index : 0;
}

inline void check_workspace(const Workspace& workspace, std::int64_t needed) {
  require(workspace.bytes >= needed, "workspace: expected at least " + std::to_string(needed) +
                                         " bytes, got " + std::to_string(workspace.bytes));
  require(reinterpret_cast<std::uintptr_t>(workspace.data) % 256 == 0,
          "workspace: expected memory aligned to 256 bytes");
}

inline int score_device(const TensorView& covariance, const TensorView& downdate,
                        const ScoreCall& call) {
  return common_device({&covariance, &downdate, &call.candidates, &call.evaluation, &call.mean,
                        &call.outputs, &call.variance, &call.noise, &call.label_probs,
                        &call.weights, &call.log_loss_targets, &call.utilities});
}

/// Everything of a scoring call but its covariance and workspace.
template <class T>
ScoreArgs<T> score_args(const ScoreCall& call, std::int64_t num_points) {
  const auto count = [&](const TensorView& indices, const char* name) {
    if (indices.ndim == 0) return num_points;
    check_view<std::int64_t>(indices, name, {-1}, Device::kCuda);
    return indices.shape[0];
  };
  const auto pointer = [](const TensorView& indices, const char* name, std::int64_t size) {
    return indices.ndim == 0 ? nullptr : device_array<std::int64_t>(indices, name, {size});
  };
  const std::int64_t k = call.mean.ndim == 2 ? call.mean.shape[1] : -1;
  ScoreArgs<T> args{};
  args.criterion = criterion_index(call.criterion);
  args.num_candidates = count(call.candidates, "candidates");
  args.num_evaluation = count(call.evaluation, "evaluation");
  args.candidates = pointer(call.candidates, "candidates", args.num_candidates);
  args.evaluation = pointer(call.evaluation, "evaluation", args.num_evaluation);
  args.mean = device_array<double>(call.mean, "mean", {num_points, k});
  args.outputs = device_array<double>(call.outputs, "outputs", {num_points, k});
  args.variance = device_array<double>(call.variance, "variance", {num_points});
  args.noise = device_array<double>(call.noise, "noise", {args.num_candidates});
  args.label_probs =
      device_array<double>(call.label_probs, "label_probs", {args.num_candidates, k});
  args.weights = device_array<double>(call.weights, "weights", {args.num_evaluation});
  if (call.log_loss_targets.ndim > 0)
    args.targets =
        device_array<double>(call.log_loss_targets, "log_loss_targets", {args.num_evaluation, k});
  args.utilities = device_array<double>(call.utilities, "utilities", {args.num_candidates});
  require(k >= 1 && k < (1 << 24), "mean: expected between 1 and 2^24 - 1 classes");
  bool uses_labels = false;
  visit_criterion(args.criterion, [&](auto c) { uses_labels = decltype(c)::kUsesLabels; });
  require(k >= 2 || !uses_labels,
          "criterion '" + call.criterion +
              "' compares classes and needs at least two columns of outputs");
  require(args.targets || call.criterion != ExpectedLogLoss::name,
          "log_loss_targets: criterion 'expected_log_loss' needs them");
  require(std::isfinite(call.temperature) && call.temperature > 0,
          "temperature: expected a finite number > 0");
  require(std::isfinite(call.ridge) && call.ridge > 0, "ridge: expected a finite number > 0");
  require(std::isfinite(call.label_scale), "label_scale: expected a finite number");
  args.settings = {static_cast<int>(k), call.cross_entropy, call.label_scale, call.temperature,
                   call.ridge};
  return args;
}

template <class T>
void check_score_workspace(const ScoreArgs<T>& args, const Workspace& workspace, int tile) {
  check_workspace(workspace, score_sizes(args.criterion, args.settings.classes, args.num_candidates,
                                         args.num_evaluation, int{sizeof(T)}, tile)
                                 .total());
}

inline cudaStream_t stream_of(void* stream) { return static_cast<cudaStream_t>(stream); }

}  // namespace
}  // namespace ntkfast
