// out += count-sketch of per-sample weight gradients that never exist.
#pragma once

#include <cstdint>

#include "core/tensor_view.h"

namespace ntkfast {

/// The factors of a weight gradient: element (t, j) of sample i at data[i, positions[t] +
/// columns[j]], with data (n, m) float or double and int64 tables.
struct FactorView {
  TensorView data, positions, columns;
};

/// Adds the sketch of left_i^T right_i, flattened row by row from parameter `start` on, to row i of
/// out (n, dim). Products and sums in the type of the arrays; samples are shared among threads.
void sketch_gradients_cpu(const FactorView& left, const FactorView& right, std::int64_t start,
                          std::uint64_t sign_key, std::uint64_t shift_key, const TensorView& out);

}  // namespace ntkfast
