#include "cpu/gram_ghost.h"

#include <algorithm>

#include "core/check.h"
#include "cpu/buffer.h"
#include "cpu/kernels.h"
#include "cpu/thread_pool.h"

namespace ntkfast {
namespace {

template <class T>
Operand<T> rows_of(const T* data, std::int64_t size) {
  Operand<T> result;
  result.data = data;
  result.row_stride = size;
  return result;
}

template <class T>
void gram_ghost(const ContractKernels<T>& kernels, const TensorView& left, const TensorView& right,
                const TensorView& left2, const TensorView& right2, const TensorView& out_view,
                bool lower, const Interrupt& interrupted) {
  const T* a = contiguous<T>(left, "left", {-1, -1, -1, -1});
  const std::int64_t combinations = left.shape[0], n = left.shape[1], positions = left.shape[2],
                     p = left.shape[3];
  const T* b = contiguous<T>(right, "right", {n, positions, -1});
  const std::int64_t q = right.shape[2];
  const T* a2 = contiguous<T>(left2, "left2", {-1, -1, -1, p});
  const std::int64_t combinations2 = left2.shape[0], m = left2.shape[1],
                     positions2 = left2.shape[2];
  const T* b2 = contiguous<T>(right2, "right2", {m, positions2, q});
  const MatrixView<T> out = matrix<T>(out_view, "out", n * combinations, m * combinations2);
  if (out.rows == 0 || out.cols == 0 || positions == 0 || positions2 == 0) return;

  Ghost<T> job{};
  job.left = rows_of(a, p);
  job.right = rows_of(b, q);
  job.left2 = rows_of(a2, p);
  job.right2 = rows_of(b2, q);
  job.samples = n;
  job.samples2 = m;
  job.combinations = combinations;
  job.combinations2 = combinations2;
  job.positions = positions;
  job.positions2 = positions2;
  job.left_size = p;
  job.right_size = q;
  job.out = out.data;
  job.out_stride = out.row_stride;
  job.lower = lower;
  const std::int64_t cols = m * positions2, item = sizeof(T);
  const std::int64_t per_col = std::max<std::int64_t>(1, combinations2 * p + q) * item;
  const std::int64_t chunk = round_up_to(
      std::min(cols, std::max(kernels.tile_cols, kPackedBytes / per_col)), kernels.tile_cols);
  const Buffer packed(chunk * per_col);
  job.packed = packed.as<T>();
  // A unit of work has whole samples, so that nobody else adds to its rows of the output.
  const std::int64_t samples = std::max<std::int64_t>(1, kernels.tile_rows / positions);
  const std::int64_t scratch_bytes = kernels.gram_ghost_scratch(job);
  const Buffer scratch(num_threads() * scratch_bytes);
  for (job.chunk_begin = 0; job.chunk_begin < cols; job.chunk_begin += chunk) {
    job.chunk_cols = std::min(chunk, cols - job.chunk_begin);
    parallel_for(
        ceil_div(job.chunk_cols, kernels.tile_cols),
        [&](std::int64_t tile, int) { kernels.gram_ghost_pack(job, tile); }, interrupted);
    parallel_for(
        ceil_div(n, samples),
        [&](std::int64_t unit, int worker) {
          kernels.gram_ghost_rows(job, unit * samples, std::min(n, (unit + 1) * samples),
                                  scratch.part(worker, scratch_bytes));
        },
        interrupted);
  }
}

}  // namespace

void gram_ghost_cpu(const TensorView& left, const TensorView& right, const TensorView& left2,
                    const TensorView& right2, const TensorView& out, bool lower,
                    const Interrupt& interrupted) {
  if (out.dtype == DType::kFloat64) {
    gram_ghost<double>(kernels().contract_double, left, right, left2, right2, out, lower,
                       interrupted);
  } else {
    gram_ghost<float>(kernels().contract_float, left, right, left2, right2, out, lower,
                      interrupted);
  }
}

}  // namespace ntkfast
