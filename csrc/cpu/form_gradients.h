// Per-sample weight gradients from their factors.
#pragma once

#include <cstdint>

#include "core/factor_view.h"
#include "cpu/interrupt.h"

namespace ntkfast {

/// out_i = left_i^T right_i, or += with `add`, flattened row by row: out (n, entries). Groups and
/// types as in sketch_gradients.h.
void form_gradients_cpu(const FactorView& left, const FactorView& right, std::int64_t groups,
                        const TensorView& out, bool add, const Interrupt& interrupted);

}  // namespace ntkfast
