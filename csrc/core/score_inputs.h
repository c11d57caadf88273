// A scoring call as kernels read it. No C++ library: see cpu/kernels.h.
#pragma once

#include <stdint.h>

namespace ntkfast {

/// What every scoring operation reads besides covariances.
struct ScoreInputs {
  int criterion;
  int classes;
  bool cross_entropy;
  double label_scale, temperature, ridge;
  const int64_t* candidates;
  int64_t num_candidates;
  const int64_t* evaluation;
  int64_t num_evaluation;
  const double *mean, *outputs;       // of all points
  const double *noise, *label_probs;  // follow candidates
  const double *weights, *targets;    // follow evaluation; targets may be null
};

}  // namespace ntkfast
