// A scoring call as kernels read it. No C++ library: see cpu/kernels.h.
#pragma once

#include <stdint.h>

namespace ntkfast {

/// What is common to all pairs of one call.
struct Settings {
  int classes;                  // k
  bool cross_entropy;           // outputs are logits; a label's residual is label_scale (e_y - B)
  double label_scale;           // s; 1 for squared loss
  double temperature;           // T
  double ridge;                 // lam, the label noise of an evaluation point (epig)
  double residual_temperature;  // T_r: B = softmax(F / T_r) for cross-entropy
  double radius;                // of coverage, in units of features of length one
};

/// What every scoring operation reads besides covariances.
struct ScoreInputs : Settings {
  int criterion;
  const int64_t* candidates;  // on a GPU null: all points in order
  int64_t num_candidates;
  const int64_t* evaluation;  // likewise
  int64_t num_evaluation;
  const double *mean, *outputs;       // of all points
  const double *noise, *label_probs;  // follow candidates
  const double *weights, *targets;    // follow evaluation; targets may be null
  const double* covered;              // likewise; m(x), may be null
};

}  // namespace ntkfast
