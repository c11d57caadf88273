// out += A B^T in the type of the arrays.
#pragma once

#include "core/tensor_view.h"
#include "cpu/interrupt.h"

namespace ntkfast {

/// A (n, K), B (m, K), out (n, m), all float or all double. With `lower`, entries above the
/// diagonal are left undefined.
void gram_add_cpu(const TensorView& A, const TensorView& B, const TensorView& out, bool lower,
                  const Interrupt& interrupted);

}  // namespace ntkfast
