#include "cpu/sketch_add.h"

#include "core/check.h"
#include "cpu/sketch_table.h"
#include "cpu/thread_pool.h"

namespace ntkfast {
namespace {

template <class T>
void sketch_add(const ContractKernels<T>& kernels, const TensorView& values_view,
                std::int64_t start, std::uint64_t sign_key, std::uint64_t shift_key,
                const TensorView& out_view) {
  const MatrixView<T> values = matrix<T>(values_view, "values", -1, -1);
  const MatrixView<T> out = matrix<T>(out_view, "out", values.rows, -1);
  require(start >= 0, "start: expected at least 0, got " + std::to_string(start));
  require(out.cols > 0, "out: expected at least one column");
  const SketchTable table(start, values.cols, out.cols, sign_key, shift_key);
  parallel_for(values.rows, [&](std::int64_t i, int) {
    kernels.sketch_add(table.sketch(), values.data + i * values.row_stride, values.cols,
                       out.data + i * out.row_stride);
  });
}

}  // namespace

void sketch_add_cpu(const TensorView& values, std::int64_t start, std::uint64_t sign_key,
                    std::uint64_t shift_key, const TensorView& out) {
  if (out.dtype == DType::kFloat64) {
    sketch_add<double>(kernels().contract_double, values, start, sign_key, shift_key, out);
  } else {
    sketch_add<float>(kernels().contract_float, values, start, sign_key, shift_key, out);
  }
}

}  // namespace ntkfast
