#include "cpu/sketch_gradients.h"

#include <algorithm>
#include <limits>

#include "core/check.h"
#include "cpu/sketch_table.h"
#include "cpu/thread_pool.h"

namespace ntkfast {
namespace {

/// A table of offsets as the kernels want it, with its extremes.
struct Offsets {
  Buffer memory;
  std::int64_t count;
  std::int64_t lowest = 0, highest = 0;

  Offsets(const TensorView& view, const std::string& name, std::int64_t expected)
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
struct Factor {
  MatrixView<T> data;
  Offsets positions, columns;
  Buffer runs;

  Factor(const FactorView& view, const std::string& name, std::int64_t samples,
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

template <class T>
void sketch_gradients(const ContractKernels<T>& kernels, const FactorView& left_view,
                      const FactorView& right_view, std::int64_t start, std::uint64_t sign_key,
                      std::uint64_t shift_key, const TensorView& out_view) {
  const MatrixView<T> out = matrix<T>(out_view, "out", -1, -1);
  const Factor<T> left(left_view, "left", out.rows, -1);
  const Factor<T> right(right_view, "right", out.rows, left.positions.count);
  require(start >= 0, "start: expected at least 0, got " + std::to_string(start));
  require(out.cols > 0, "out: expected at least one column");
  const std::int64_t rows = left.columns.count, size = right.columns.count;
  const SketchTable table(start, rows * size, out.cols, sign_key, shift_key);
  const SketchGradients<T> job{left.gathered(), right.gathered(), left.positions.count, rows, size,
                               table.sketch(),  out.data,         out.row_stride};
  const std::int64_t bytes = kernels.sketch_gradients_scratch(job);
  const Buffer scratch(num_threads() * bytes);
  parallel_for(out.rows, [&](std::int64_t sample, int worker) {
    kernels.sketch_gradients(job, sample, scratch.part(worker, bytes));
  });
}

}  // namespace

void sketch_gradients_cpu(const FactorView& left, const FactorView& right, std::int64_t start,
                          std::uint64_t sign_key, std::uint64_t shift_key, const TensorView& out) {
  if (out.dtype == DType::kFloat64) {
    sketch_gradients<double>(kernels().contract_double, left, right, start, sign_key, shift_key,
                             out);
  } else {
    sketch_gradients<float>(kernels().contract_float, left, right, start, sign_key, shift_key, out);
  }
}

}  // namespace ntkfast
