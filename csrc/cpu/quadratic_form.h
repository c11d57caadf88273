// q_i = x_i^T G x_i.
#pragma once

#include "core/tensor_view.h"
#include "cpu/interrupt.h"

namespace ntkfast {

/// X (N, d) float or double, G (d, d) double, q (N,) double; products and sums in double.
void quadratic_form_cpu(const TensorView& X, const TensorView& G, const TensorView& q,
                        const Interrupt& interrupted);

}  // namespace ntkfast
