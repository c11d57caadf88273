// Gram matrix of weight gradients from products over pairs of positions, without the gradients.
#pragma once

#include "core/tensor_view.h"
#include "cpu/interrupt.h"

namespace ntkfast {

/// out(i R + a, j R2 + b) += sum_{t, s} <left_ait, left2_bjs> <right_it, right2_js>, the inner
/// product of the gradients left_ai^T right_i and left2_bj^T right2_j. left (R, n, T, p), right
/// (n, T, q), left2 (R2, m, S, p), right2 (m, S, q) contiguous, out (n R, m R2), all float or all
/// double; computed in that type. With `lower`, entries above the diagonal are left undefined.
void gram_ghost_cpu(const TensorView& left, const TensorView& right, const TensorView& left2,
                    const TensorView& right2, const TensorView& out, bool lower,
                    const Interrupt& interrupted);

}  // namespace ntkfast
