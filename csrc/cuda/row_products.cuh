// Rows times a few columns, in one pass over the rows: products and sums in double.
#pragma once

#include "cuda/lanes.cuh"

namespace ntkfast {
namespace {

/// Rows per warp: the columns, in shared memory, are read once for all of them, and so many loads
/// are on their way at a time.
constexpr int kWarpRows = 4;

/// The next rows of a warp; beyond the last row, that one again. `index`: of the rows in memory, or
/// nullptr.
template <class S>
NTKFAST_DEVICE void find_rows(const S* X, int64_t row_stride, const int64_t* index, int64_t first,
                              int64_t rows, const S* (&x)[kWarpRows]) {
  NTKFAST_UNROLL_DEVICE
  for (int r = 0; r < kWarpRows; ++r) {
    const int64_t i = first + r < rows ? first + r : rows - 1;
    x[r] = X + (index ? index[i] : i) * row_stride;
  }
}

/// sums[r][c] += this lane's part of <x[r], column c>, from entry `begin` of the rows on. Column c
/// of the panel, `count` numbers, begins at c * stride.
template <int K, class S, class Panel>
NTKFAST_DEVICE void add_row_products(int lane, const S* const (&x)[kWarpRows], int64_t begin,
                                     int count, Panel panel, int stride,
                                     double (&sums)[kWarpRows][K]) {
  for (int j = lane; j < count; j += 32) {
    double column[K];
    NTKFAST_UNROLL_DEVICE
    for (int c = 0; c < K; ++c) column[c] = panel[c * stride + j];
    NTKFAST_UNROLL_DEVICE
    for (int r = 0; r < kWarpRows; ++r) {
      const double value = number<double>(x[r][begin + j]);
      NTKFAST_UNROLL_DEVICE
      for (int c = 0; c < K; ++c) sums[r][c] = fma(value, column[c], sums[r][c]);
    }
  }
}

template <class S>
struct RowProductsArgs {
  const S* X;  // (rows, depth)
  int64_t row_stride, rows, depth;
  const double* B;  // (depth, cols), cols <= K
  int64_t B_stride;
  int cols;
  double* out;  // (rows, cols) = X B
  int64_t out_stride;
};

template <class S, int K>
struct RowProducts {
  static constexpr int kThreads = 256;
  static constexpr int kBlockRows = kThreads / 32 * kWarpRows;
  /// Numbers of a column in shared memory at a time; odd, so that its columns, written together,
  /// fall into different banks.
  static constexpr int kDepth = ((K > 4 ? 8192 : 4096) / K - 1) | 1;
  static constexpr int64_t kBlocks = 528;  // a few per multiprocessor of a large GPU
  static NTKFAST_HD int stride(int64_t depth) {
    return depth < kDepth ? static_cast<int>(depth) | 1 : kDepth;
  }
  static int shared_bytes(int64_t depth) { return K * stride(depth) * int{sizeof(double)}; }

  template <class Ctx>
  static NTKFAST_DEVICE void body(const Ctx& ctx, const RowProductsArgs<S>& args) {
    const int thread = ctx.thread(), lane = thread % 32;
    const int stride = RowProducts::stride(args.depth);
    const auto panel = ctx.template shared<double>(0, K * stride);
    const bool once = args.depth <= stride;  // loaded once per block, however many rows it has
    for (int64_t first_of_block = ctx.block_x() * kBlockRows; first_of_block < args.rows;
         first_of_block += ctx.grid_x() * kBlockRows) {
      const int64_t first = first_of_block + thread / 32 * kWarpRows;
      const S* x[kWarpRows];
      find_rows(args.X, args.row_stride, nullptr, first, args.rows, x);
      double sums[kWarpRows][K] = {};
      for (int64_t begin = 0; begin < args.depth; begin += stride) {
        const int64_t left = args.depth - begin;
        const int count = left < stride ? static_cast<int>(left) : stride;
        if (!once || first_of_block == ctx.block_x() * kBlockRows) {
          ctx.barrier();
          for (int e = thread; e < count * K; e += kThreads) {
            const int j = e / K, c = e % K;
            panel[c * stride + j] = c < args.cols ? args.B[(begin + j) * args.B_stride + c] : 0.0;
          }
          ctx.barrier();
        }
        add_row_products(lane, x, begin, count, panel, stride, sums);
      }
      NTKFAST_UNROLL_DEVICE
      for (int r = 0; r < kWarpRows; ++r) {
        NTKFAST_UNROLL_DEVICE
        for (int c = 0; c < K; ++c) {
          const double sum = sum_lanes<32>(ctx, sums[r][c]);
          if (lane == c && c < args.cols && first + r < args.rows)
            args.out[(first + r) * args.out_stride + c] = sum;
        }
      }
    }
  }
};

/// More columns are for tiles.
constexpr int kMostRowProducts = 16;

template <class S, class Launcher>
void launch_row_products(Launcher& launcher, const RowProductsArgs<S>& args) {
  const auto launch = [&](auto columns) {
    using Kernel = RowProducts<S, decltype(columns)::value>;
    const int64_t blocks = div_up(args.rows, Kernel::kBlockRows);
    launcher.template run<Kernel>({blocks < Kernel::kBlocks ? blocks : Kernel::kBlocks, 1},
                                  Kernel::shared_bytes(args.depth), args);
  };
  if (args.cols <= 1) {
    launch(std::integral_constant<int, 1>{});
  } else if (args.cols <= 2) {
    launch(std::integral_constant<int, 2>{});
  } else if (args.cols <= 4) {
    launch(std::integral_constant<int, 4>{});
  } else if (args.cols <= 10) {
    launch(std::integral_constant<int, 10>{});
  } else {
    launch(std::integral_constant<int, kMostRowProducts>{});
  }
}

}  // namespace
}  // namespace ntkfast
