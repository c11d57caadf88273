// The factors of per-sample weight gradients, checked and as the kernels want them.
#pragma once

#include <algorithm>
#include <limits>
#include <string>

#include "core/check.h"
#include "core/factor_view.h"
#include "cpu/buffer.h"
#include "cpu/kernels.h"
#include "cpu/thread_pool.h"

namespace ntkfast {

/// A table of offsets as the kernels want it, with its extremes.
struct FactorOffsets {
  Buffer memory;
  std::int64_t count;
  std::int64_t lowest = 0, highest = 0;

  FactorOffsets(const TensorView& view, const std::string& name, std::int64_t expected)
      : memory(view.shape[0] * std::int64_t{sizeof(std::int32_t)}), count(view.shape[0]) {
    const std::int64_t* from = contiguous<std::int64_t>(view, name.c_str(), {expected});
    if (count == 0) return;
    lowest = *std::min_element(from, from + count);
    highest = *std::max_element(from, from + count);
    require(lowest >= 0 && highest <= std::numeric_limits<std::int32_t>::max(),
            name + ": expected offsets from 0 to 2^31 - 1");
    std::transform(from, from + count, memory.as<std::int32_t>(),
                   [](std::int64_t value) { return static_cast<std::int32_t>(value); });
  }
  const std::int32_t* data() const { return memory.as<std::int32_t>(); }
};

template <class T>
struct GradientFactor {
  MatrixView<T> data;
  FactorOffsets positions, columns;
  Buffer runs;

  GradientFactor(const FactorView& view, const std::string& name, std::int64_t samples,
                 std::int64_t num_positions)
      : data(matrix<T>(view.data, name.c_str(), samples, -1)),
        positions(view.positions, name + "_positions", num_positions),
        columns(view.columns, name + "_columns", -1),
        runs(ceil_div(positions.count, 16)) {
    require(positions.count == 0 || columns.count == 0 ||
                positions.highest + columns.highest < data.cols,
            name + ": positions and columns reach element " +
                std::to_string(positions.highest + columns.highest) + " of " +
                std::to_string(data.cols));
    const auto follow = [this](std::int64_t begin, std::int64_t end) {
      const std::int32_t* p = positions.data();
      for (std::int64_t k = begin + 1; k < end; ++k)
        if (p[k] != p[k - 1] + 1) return false;
      return true;
    };
    for (std::int64_t k = 0; k < positions.count; k += 16) {
      const std::int64_t end = std::min(k + 16, positions.count);
      runs.as<Run>()[k / 16] = follow(k, end) ? Run::kWhole
                               : end - k == 16 && follow(k, k + 8) && follow(k + 8, end)
                                   ? Run::kHalves
                                   : Run::kNone;
    }
  }
  Gathered<T> gathered() const {
    return {data.data, data.row_stride, positions.data(), columns.data(), runs.as<Run>()};
  }
};

/// Both factors of the gradients of `samples` samples; -1: of as many as there are.
template <class T>
struct GradientFactors {
  GradientFactor<T> left, right;
  std::int64_t groups;

  GradientFactors(const FactorView& left_view, const FactorView& right_view,
                  std::int64_t num_groups, std::int64_t samples)
      : left(left_view, "left", samples, -1),
        right(right_view, "right", left.data.rows, left.positions.count),
        groups(num_groups) {
    check_groups(groups, left.columns.count, right.columns.count);
  }
  /// Entries of one gradient.
  std::int64_t entries() const { return left.columns.count * (right.columns.count / groups); }
  Gradients<T> job(const MatrixView<T>& out) const {
    return {left.gathered(),
            right.gathered(),
            left.positions.count,
            groups,
            left.columns.count / groups,
            right.columns.count / groups,
            out.data,
            out.row_stride};
  }
};

}  // namespace ntkfast
