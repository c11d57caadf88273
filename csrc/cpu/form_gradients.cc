#include "cpu/form_gradients.h"

#include "cpu/gradient_factors.h"

namespace ntkfast {
namespace {

template <class T>
void form_gradients(const ContractKernels<T>& kernels, const FactorView& left,
                    const FactorView& right, std::int64_t groups, const TensorView& out_view,
                    bool add, const Interrupt& interrupted) {
  const GradientFactors<T> factors(left, right, groups, -1);
  const MatrixView<T> out = matrix<T>(out_view, "out", factors.left.data.rows, factors.entries());
  const Gradients<T> job = factors.job(out);
  const std::int64_t bytes = kernels.gradients_scratch(job);
  const Buffer scratch(num_threads() * bytes);
  parallel_for(
      out.rows,
      [&](std::int64_t sample, int worker) {
        kernels.form_gradients(job, add, sample, scratch.part(worker, bytes));
      },
      interrupted);
}

}  // namespace

void form_gradients_cpu(const FactorView& left, const FactorView& right, std::int64_t groups,
                        const TensorView& out, bool add, const Interrupt& interrupted) {
  if (out.dtype == DType::kFloat64) {
    form_gradients<double>(kernels().contract_double, left, right, groups, out, add, interrupted);
  } else {
    form_gradients<float>(kernels().contract_float, left, right, groups, out, add, interrupted);
  }
}

}  // namespace ntkfast
