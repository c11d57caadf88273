// psi <- psi - (psi U^T) C: conditioning in weight space (docs/method.md, section 3), rank b.
#pragma once

#include "core/tensor_view.h"

namespace ntkfast {

/// psi (N, d) float or double, in place and never interrupted; U, C (b, d) double. Products and
/// sums in double: U and C carry the condition of the labelled Gram matrix, which would multiply
/// the rounding of float.
void condition_features_cpu(const TensorView& psi, const TensorView& U, const TensorView& C);

}  // namespace ntkfast
