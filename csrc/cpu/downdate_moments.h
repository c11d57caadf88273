// One sequential pick of variance_reduction in weight space, without pairs (docs/method.md, section
// 4).
#pragma once

#include "core/tensor_view.h"

namespace ntkfast {

/// With alpha_x = <psi_x, g>:
///     q_x -= 2 alpha_x <psi_x, h> / D - alpha_x^2 gGg / D^2,     s_x -= alpha_x^2 / D
/// psi (N, d) float or double; g, h (d,), q, s (N,) double, q and s in place and never interrupted.
/// One pass over psi; products and sums in double, because these updates subtract.
void downdate_moments_cpu(const TensorView& psi, const TensorView& g, const TensorView& h,
                          double gGg, double D, const TensorView& q, const TensorView& s);

}  // namespace ntkfast
