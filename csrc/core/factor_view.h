// The factors of per-sample weight gradients, as callers hand them over.
#pragma once

#include <string>

#include "core/status.h"
#include "core/tensor_view.h"

namespace ntkfast {

/// Element (t, j) of sample i at data[i, positions[t] + columns[j]], with data (n, m) float or
/// double and int64 tables.
struct FactorView {
  TensorView data, positions, columns;
};

/// Throws unless the columns of both factors fall into as many groups.
inline void check_groups(std::int64_t groups, std::int64_t left_columns,
                         std::int64_t right_columns) {
  require(groups > 0 && left_columns % groups == 0 && right_columns % groups == 0,
          "groups: expected a divisor of the " + std::to_string(left_columns) + " and " +
              std::to_string(right_columns) + " columns, got " + std::to_string(groups));
}

}  // namespace ntkfast
