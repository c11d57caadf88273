// What the launchers check before they launch.
#pragma once

#include <initializer_list>

#include "core/check.h"
#include "core/score_call.h"
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
                        &call.weights, &call.log_loss_targets, &call.covered, &call.utilities});
}

/// Everything of a scoring call but its covariance and workspace.
template <class T>
ScoreArgs<T> score_args(const ScoreCall& call, std::int64_t num_points) {
  ScoreArgs<T> args{};
  static_cast<ScoreInputs&>(args) = check_score_call(call, num_points, Device::kCuda);
  args.variance = device_array<double>(call.variance, "variance", {num_points});
  args.utilities = static_cast<double*>(call.utilities.data);
  return args;
}

template <class T>
void check_score_workspace(const ScoreArgs<T>& args, const Workspace& workspace, TileShape tile) {
  check_workspace(workspace, score_sizes(args, tile).total());
}

inline cudaStream_t stream_of(void* stream) { return static_cast<cudaStream_t>(stream); }

}  // namespace
}  // namespace ntkfast
