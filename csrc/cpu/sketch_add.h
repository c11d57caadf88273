// out += count-sketch of vectors that exist.
#pragma once

#include <cstdint>

#include "core/tensor_view.h"

namespace ntkfast {

/// values (n, m) and out (n, dim), of one floating type: entry p of a row, parameter start + p of a
/// gradient, is added to out with the bucket and sign of ntkfast/_ntk/sketch.py.
void sketch_add_cpu(const TensorView& values, std::int64_t start, std::uint64_t sign_key,
                    std::uint64_t shift_key, const TensorView& out);

}  // namespace ntkfast
