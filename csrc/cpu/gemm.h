// Drives the matrix kernels of one instruction set over a whole product, on all threads.
#pragma once

#include <algorithm>

#include "core/tensor_view.h"
#include "cpu/buffer.h"
#include "cpu/interrupt.h"
#include "cpu/kernels.h"
#include "cpu/thread_pool.h"

namespace ntkfast {

template <class S>
Operand<S> operand(const MatrixView<const S>& view) {
  Operand<S> result;
  result.data = view.data;
  result.row_stride = view.row_stride;
  result.col_stride = view.col_stride;
  return result;
}
template <class S>
Operand<S> operand(const MatrixView<S>& view) {
  return operand(
      MatrixView<const S>{view.data, view.rows, view.cols, view.row_stride, view.col_stride});
}

/// C = beta C + alpha A B^T with A (m, depth), B (n, depth), C (m, n); only tiles that meet the
/// lower triangle when `lower`. Threads share the rows: give C the orientation in which it is tall.
template <class SA, class SB, class T, class O>
void gemm(const GemmKernels<SA, SB, T, O>& kernels, const Operand<SA>& A, const Operand<SB>& B,
          std::int64_t depth, const MatrixView<O>& C, double alpha, double beta, bool lower = false,
          const Interrupt& interrupted = {}) {
  constexpr std::int64_t kDepth = 4096;  // deeper products are accumulated in C
  if (C.rows == 0 || C.cols == 0) return;
  const LinalgKernels& tiles = ntkfast::kernels().linalg;
  Gemm<SA, SB, T, O> job{};
  job.left = A;
  job.right = B;
  job.rows = C.rows;
  job.cols = C.cols;
  job.out = C.data;
  job.out_row_stride = C.row_stride;
  job.out_col_stride = C.col_stride;
  job.alpha = alpha;
  job.beta = beta;
  job.lower = lower;
  const std::int64_t slice = std::min(depth, kDepth);
  const std::int64_t item = sizeof(T);
  const std::int64_t chunk = round_up_to(
      std::min(C.cols,
               std::max(tiles.tile_cols, kPackedBytes / std::max<std::int64_t>(1, slice * item))),
      tiles.tile_cols);
  const Buffer packed(chunk * slice * item);
  job.packed_right = packed.template as<T>();
  const std::int64_t scratch_bytes = round_up_to(
      (round_up_to(tiles.tile_rows * slice, 64) + tiles.tile_rows * tiles.tile_cols) * item, 64);
  const Buffer scratch(num_threads() * scratch_bytes);
  for (job.begin = 0; job.begin < std::max<std::int64_t>(depth, 1); job.begin += slice) {
    job.depth = std::min(slice, depth - job.begin);
    for (job.chunk_begin = 0; job.chunk_begin < C.cols; job.chunk_begin += chunk) {
      job.chunk_cols = std::min(chunk, C.cols - job.chunk_begin);
      parallel_for(
          ceil_div(job.chunk_cols, tiles.tile_cols),
          [&](std::int64_t tile, int) { kernels.pack(job, tile); }, interrupted);
      parallel_for(
          ceil_div(C.rows, tiles.tile_rows),
          [&](std::int64_t tile, int worker) {
            kernels.rows(job, tile, scratch.part(worker, scratch_bytes));
          },
          interrupted);
    }
    job.beta = 1;
    if (depth == 0) break;
  }
}

}  // namespace ntkfast
