// S <- S - V^T V: conditioning in function space (docs/method.md, section 2), rank b.
#pragma once

#include "core/tensor_view.h"

namespace ntkfast {

/// S (N, N) float or double, symmetric, in place and never interrupted; V (b, N) double. Computed
/// in double, rounded to S's type once, and bitwise symmetric again.
void condition_dense_cpu(const TensorView& S, const TensorView& V);

}  // namespace ntkfast
