#include "core/score_call.h"

#include <cmath>

#include "core/check.h"
#include "math/criteria.h"

namespace ntkfast {

int criterion_count() { return Criteria::size; }

const char* criterion_name(int index) {
  const char* name = "";
  visit_criterion(index, [&](auto c) { name = decltype(c)::name; });
  return name;
}

unsigned criterion_traits(int index) {
  unsigned traits = 0;
  visit_criterion(index, [&](auto c) { traits = decltype(c)::kTraits; });
  return traits;
}

std::vector<std::pair<std::string, std::vector<std::string>>> criteria() {
  std::vector<std::pair<std::string, std::vector<std::string>>> all;
  for (int i = 0; i < criterion_count(); ++i) {
    all.emplace_back(criterion_name(i), std::vector<std::string>{});
    unsigned traits = criterion_traits(i);
    for (const char* name : kTraitNames) {
      if (traits & 1) all.back().second.emplace_back(name);
      traits >>= 1;
    }
  }
  return all;
}

int criterion_index(const std::string& name) {
  std::string known;
  for (int i = 0; i < criterion_count(); ++i) {
    if (name == criterion_name(i)) return i;
    known += (i ? ", " : "") + std::string(criterion_name(i));
  }
  throw InvalidArgument("criterion: unknown name '" + name + "'; expected one of " + known);
}

ScoreInputs check_score_call(const ScoreCall& call, std::int64_t num_points, Device device) {
  const std::int64_t k = call.mean.ndim == 2 ? call.mean.shape[1] : -1;
  const auto indices = [&](const TensorView& view, const char* name, std::int64_t* count) {
    if (device == Device::kCuda && view.ndim == 0) {
      *count = num_points;
      return static_cast<const std::int64_t*>(nullptr);
    }
    *count = view.ndim == 1 ? view.shape[0] : -1;
    return static_cast<const std::int64_t*>(contiguous<std::int64_t>(view, name, {*count}, device));
  };
  const auto array = [&](const TensorView& view, const char* name,
                         std::initializer_list<std::int64_t> shape) {
    return contiguous<double>(view, name, shape, device);
  };
  ScoreInputs score{};
  score.criterion = criterion_index(call.criterion);
  score.candidates = indices(call.candidates, "candidates", &score.num_candidates);
  score.evaluation = indices(call.evaluation, "evaluation", &score.num_evaluation);
  score.mean = array(call.mean, "mean", {num_points, k});
  score.outputs = array(call.outputs, "outputs", {num_points, k});
  score.noise = array(call.noise, "noise", {score.num_candidates});
  score.label_probs = array(call.label_probs, "label_probs", {score.num_candidates, k});
  score.weights = array(call.weights, "weights", {score.num_evaluation});
  if (call.log_loss_targets.ndim > 0)
    score.targets = array(call.log_loss_targets, "log_loss_targets", {score.num_evaluation, k});
  if (call.covered.ndim > 0) score.covered = array(call.covered, "covered", {score.num_evaluation});
  array(call.utilities, "utilities", {score.num_candidates});
  require(k >= 1 && k < (1 << 24), "mean: expected between 1 and 2^24 - 1 classes");
  const unsigned traits = criterion_traits(score.criterion);
  require(k >= 2 || !(traits & kLookAhead), "criterion '" + call.criterion +
                                                "' compares classes and needs at least two columns "
                                                "of outputs");
  require(call.log_loss_targets.ndim > 0 || !(traits & kReadsTargets),
          "log_loss_targets: criterion '" + call.criterion + "' needs them");
  require(call.covered.ndim > 0 || !(traits & kReadsCovered),
          "covered: criterion '" + call.criterion + "' needs it");
  require(std::isfinite(call.radius) && call.radius > 0, "radius: expected a finite number > 0");
  require(call.loss == "squared" || call.loss == "cross_entropy",
          "loss: expected 'squared' or 'cross_entropy', got '" + call.loss + "'");
  require(std::isfinite(call.temperature) && call.temperature > 0,
          "temperature: expected a finite number > 0");
  require(std::isfinite(call.ridge) && call.ridge > 0, "ridge: expected a finite number > 0");
  require(std::isfinite(call.label_scale), "label_scale: expected a finite number");
  require(std::isfinite(call.residual_temperature) && call.residual_temperature > 0,
          "residual_temperature: expected a finite number > 0");
  score.classes = static_cast<int>(k);
  score.cross_entropy = call.loss == "cross_entropy";
  score.label_scale = call.label_scale;
  score.temperature = call.temperature;
  score.ridge = call.ridge;
  score.residual_temperature = call.residual_temperature;
  score.radius = call.radius;
  return score;
}

}  // namespace ntkfast
