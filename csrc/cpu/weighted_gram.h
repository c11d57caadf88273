// G = sum_i w_i x_i x_i^T.
#pragma once

#include "core/tensor_view.h"
#include "cpu/interrupt.h"

namespace ntkfast {

/// X (N, d) float or double, weights (N,) double, G (d, d) double; products and sums in double.
void weighted_gram_cpu(const TensorView& X, const TensorView& weights, const TensorView& G,
                       const Interrupt& interrupted);

}  // namespace ntkfast
