#include "cpu/sketch_gradients.h"

#include "cpu/gradient_factors.h"
#include "cpu/sketch_table.h"

namespace ntkfast {
namespace {

template <class T>
void sketch_gradients(const ContractKernels<T>& kernels, const FactorView& left,
                      const FactorView& right, std::int64_t groups, std::int64_t start,
                      std::uint64_t sign_key, std::uint64_t shift_key, const TensorView& out_view) {
  const MatrixView<T> out = matrix<T>(out_view, "out", -1, -1);
  const GradientFactors<T> factors(left, right, groups, out.rows);
  require(start >= 0, "start: expected at least 0, got " + std::to_string(start));
  require(out.cols > 0, "out: expected at least one column");
  const SketchTable table(start, factors.entries(), out.cols, sign_key, shift_key);
  const Gradients<T> job = factors.job(out);
  const std::int64_t bytes = kernels.gradients_scratch(job);
  const Buffer scratch(num_threads() * bytes);
  parallel_for(out.rows, [&](std::int64_t sample, int worker) {
    kernels.sketch_gradients(job, table.sketch(), sample, scratch.part(worker, bytes));
  });
}

}  // namespace

void sketch_gradients_cpu(const FactorView& left, const FactorView& right, std::int64_t groups,
                          std::int64_t start, std::uint64_t sign_key, std::uint64_t shift_key,
                          const TensorView& out) {
  if (out.dtype == DType::kFloat64) {
    sketch_gradients<double>(kernels().contract_double, left, right, groups, start, sign_key,
                             shift_key, out);
  } else {
    sketch_gradients<float>(kernels().contract_float, left, right, groups, start, sign_key,
                            shift_key, out);
  }
}

}  // namespace ntkfast
