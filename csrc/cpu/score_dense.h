// Utilities of candidates in function space: S is a matrix in memory.
#pragma once

#include "core/score_call.h"
#include "cpu/interrupt.h"

namespace ntkfast {

/// Covariance S - U^T U with S (N, N) symmetric, float or double (the compute type), and U (r, N)
/// of the same type, the rows that the picks of a batch have added (ndim 0: none). S is not
/// changed.
void score_dense_cpu(const TensorView& S, const TensorView& downdate, const ScoreCall& call,
                     const Interrupt& interrupted);

}  // namespace ntkfast
