// X = L^-1 B or L^-T B.
#pragma once

#include "core/tensor_view.h"
#include "cpu/interrupt.h"

namespace ntkfast {

/// L (n, n) lower triangular (what lies above its diagonal is not read), X (n, m): B on entry, the
/// solution on return; double. Throws InvalidArgument if a diagonal element is zero or not finite.
void triangular_solve_cpu(const TensorView& L, const TensorView& X, bool transpose,
                          const Interrupt& interrupted);

}  // namespace ntkfast
