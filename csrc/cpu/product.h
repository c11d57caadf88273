// Y = X B for a tall X and a B of few columns.
#pragma once

#include "core/tensor_view.h"
#include "cpu/interrupt.h"

namespace ntkfast {

/// X (N, d) float or double, B (d, k) double, Y (N, k) double; products and sums in double. Unlike
/// a packaged BLAS it gives bitwise the same result for any number of threads.
void product_cpu(const TensorView& X, const TensorView& B, const TensorView& Y,
                 const Interrupt& interrupted);

}  // namespace ntkfast
