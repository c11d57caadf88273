// s_i = |x_i|^2.
#pragma once

#include "core/tensor_view.h"

namespace ntkfast {

/// X (N, d) float or double, s (N,) double; products and sums in double.
void squared_norms_cpu(const TensorView& X, const TensorView& s);

}  // namespace ntkfast
