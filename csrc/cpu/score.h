// The driver that score_features and score_dense share.
#pragma once

#include "core/score_call.h"
#include "cpu/interrupt.h"
#include "cpu/kernels.h"

namespace ntkfast {

/// Index of a criterion in the compiled list; throws InvalidArgument naming those there are.
int criterion_index(const std::string& name);
int criterion_count();
const char* criterion_name(int index);

/// Checks a call against `num_points` points and writes its utilities. The covariance is given by
/// dense / factors / depth of `score`, which the caller has set; the rest is filled in here.
template <class T>
void run_score(const ScoreKernels<T>& kernels, Score<T> score, std::int64_t num_points,
               const ScoreCall& call, const Interrupt& interrupted);

}  // namespace ntkfast
