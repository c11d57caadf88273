// Gram matrix of weight gradients from products over pairs of positions, without the gradients.
#pragma once

#include "core/tensor_view.h"
#include "cpu/interrupt.h"

namespace ntkfast {

/// out(i, j) += sum_{t, s} <left_it, left2_js> <right_it, right2_js>, the inner product of the
/// gradients left_i^T right_i and left2_j^T right2_j. left (n, T, p), right (n, T, q), left2
/// (m, S, p), right2 (m, S, q) contiguous, out (n, m), all float or all double; computed in that
/// type. With `lower`, entries above the diagonal are left undefined.
void gram_ghost_cpu(const TensorView& left, const TensorView& right, const TensorView& left2,
                    const TensorView& right2, const TensorView& out, bool lower,
                    const Interrupt& interrupted);

}  // namespace ntkfast
