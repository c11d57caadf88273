// A = L L^T.
#pragma once

#include "core/tensor_view.h"
#include "cpu/interrupt.h"

namespace ntkfast {

/// L (n, n) double: the lower triangle of A on entry, its factor on return, zero above the
/// diagonal. Throws InvalidArgument naming the row at which A is found not to be positive definite.
void cholesky_cpu(const TensorView& L, const Interrupt& interrupted);

}  // namespace ntkfast
