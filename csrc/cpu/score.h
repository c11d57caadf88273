// The driver that score_features and score_dense share, and what score_blocks has of it.
#pragma once

#include "core/score_call.h"
#include "cpu/interrupt.h"
#include "cpu/kernels.h"

namespace ntkfast {

/// Throws InvalidArgument unless every index lies in [0, num_points).
void check_indices(const std::int64_t* indices, std::int64_t count, std::int64_t num_points,
                   const char* name);

/// check_score_call, and of the indices too. Utilities are zero afterwards.
ScoreInputs read_score_call(const ScoreCall& call, std::int64_t num_points);

/// Checks a call against `num_points` points and writes its utilities. The covariance is given by
/// dense / factors / depth of `score`, which the caller has set; the rest is filled in here.
template <class T>
void run_score(const ScoreKernels<T>& kernels, Score<T> score, std::int64_t num_points,
               const ScoreCall& call, const Interrupt& interrupted);

}  // namespace ntkfast
