// The arguments of score_features and score_dense, the same for every backend.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "core/score_inputs.h"
#include "core/tensor_view.h"

namespace ntkfast {

/// Shapes: N points, N_c candidates, N_x evaluation points, k classes. All arrays but the
/// covariance (psi or S, float or double: the compute type) and the indices (int64) are double.
struct ScoreCall {
  std::string criterion;
  TensorView candidates;        // (N_c,) indices of points
  TensorView evaluation;        // (N_x,) indices of points
  TensorView mean;              // (N, k) posterior mean F
  TensorView outputs;           // (N, k) outputs f of the trained network
  TensorView variance;          // (N,) S(x, x)
  TensorView noise;             // (N_c,) lam_c in (0, inf]
  TensorView label_probs;       // (N_c, k) P(y|c)
  TensorView weights;           // (N_x,) v(x)
  TensorView log_loss_targets;  // (N_x, k) q(x), or ndim 0
  TensorView covered;           // (N_x,) m(x), or ndim 0
  double label_scale = 1;
  std::string loss = "squared";  // or "cross_entropy"
  double temperature = 1;
  double ridge = 1;
  double residual_temperature = 1;
  double radius = 1;
  TensorView utilities;  // (N_c,) double, written
};

/// Index of a criterion in the compiled list; throws InvalidArgument naming those there are.
int criterion_index(const std::string& name);
int criterion_count();
const char* criterion_name(int index);
/// The traits of csrc/math/criteria.h.
unsigned criterion_traits(int index);
/// Every criterion, with the names of those of its traits that callers need to know.
std::vector<std::pair<std::string, std::vector<std::string>>> criteria();

/// Checks a call against `num_points` points: everything but the variance, which each operation has
/// in its own shape, and what arrays hold. On a GPU absent indices (ndim 0, then null) stand for
/// all points in order.
ScoreInputs check_score_call(const ScoreCall& call, std::int64_t num_points, Device device);

}  // namespace ntkfast
