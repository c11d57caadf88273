// Utilities of candidates in weight space: S(x, c) = <psi(x), psi(c)>.
#pragma once

#include "core/score_call.h"
#include "cpu/interrupt.h"

namespace ntkfast {

/// psi (N, d) float or double, the type everything pairwise is computed in; sums over points in
/// double.
void score_features_cpu(const TensorView& psi, const ScoreCall& call, const Interrupt& interrupted);

}  // namespace ntkfast
