// The factor of a matrix that has grown by some rows, from the factor it had.
#pragma once

#include "core/tensor_view.h"
#include "cpu/interrupt.h"

namespace ntkfast {

/// out (n + m, n + m) double = Cholesky factor of [[L L^T, cross^T], [cross, corner]] with L (n,
/// n), cross (m, n), corner (m, m): O(n^2 m) instead of O(n^3). Throws InvalidArgument if the grown
/// matrix is not positive definite.
void cholesky_append_cpu(const TensorView& L, const TensorView& cross, const TensorView& corner,
                         const TensorView& out, const Interrupt& interrupted);

}  // namespace ntkfast
