// psi = phi W^T: features in which the posterior covariance is an inner product (docs/method.md,
// section 3).
#pragma once

#include "core/tensor_view.h"
#include "cpu/interrupt.h"

namespace ntkfast {

/// features (N, d) and psi (N, d) of one type, float or double; W (d, d) double. Sums in double.
void whiten_cpu(const TensorView& features, const TensorView& W, const TensorView& psi,
                const Interrupt& interrupted);

}  // namespace ntkfast
