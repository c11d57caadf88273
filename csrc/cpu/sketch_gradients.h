// out += count-sketch of per-sample weight gradients that never exist.
#pragma once

#include <cstdint>

#include "core/factor_view.h"

namespace ntkfast {

/// Adds the sketch of left_i^T right_i, flattened row by row from parameter `start` on, to row i of
/// out (n, dim). The columns of both factors fall into `groups` groups, and only those of the same
/// group are multiplied. Products and sums in the type of the arrays; samples are shared among
/// threads.
void sketch_gradients_cpu(const FactorView& left, const FactorView& right, std::int64_t groups,
                          std::int64_t start, std::uint64_t sign_key, std::uint64_t shift_key,
                          const TensorView& out);

}  // namespace ntkfast
