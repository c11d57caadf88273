// Utilities of candidates for a matrix-valued kernel: every covariance is a k x k block.
#pragma once

#include "core/score_call.h"
#include "cpu/interrupt.h"

namespace ntkfast {

/// covariance (B_c k, B_x k), float or double (the compute type): block rows[i] x columns[j] is
/// S(c_i, x_j); rows (N_c,) and columns (N_x,) int64, or ndim 0: in order. `call.variance` is
/// (N_c, k, k), S(c, c) of the candidates; evaluation_variance (N_x, k, k), S(x, x) of the
/// evaluation points, only read by `epig` (ndim 0: none). Throws InvalidArgument where a block plus
/// its noise is not positive definite.
void score_blocks_cpu(const TensorView& covariance, const TensorView& rows,
                      const TensorView& columns, const TensorView& evaluation_variance,
                      const ScoreCall& call, const Interrupt& interrupted);

}  // namespace ntkfast
