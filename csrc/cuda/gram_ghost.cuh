// Gram matrix of weight gradients from products over pairs of positions, without the gradients.
//
// A block owns the entries of out between two groups of samples and goes through the tiles of their
// pairs of positions. Of every tile the right products stay in registers; the left products of each
// pair of combinations are multiplied with them, and the result is summed over the positions of
// each pair of samples. Nobody else adds to those entries, so the order of all additions is fixed.
#pragma once

#include "cuda/gram_tile.cuh"

namespace ntkfast {
namespace {

/// One side: rows are (sample, position) pairs.
struct GhostSide {
  TensorOperand left, right;  // left: of the first combination
  int64_t samples;
  int positions, combinations;
  int64_t left_bytes;  // from one combination to the next
  int64_t group;       // samples of a block
};
template <class T>
struct GhostArgs {
  GhostSide rows, cols;
  T* out;  // (sample, combination) pairs
  int64_t out_stride;
  bool lower;
};

template <class Products>
struct GramGhost {
  using T = typename Products::T;
  static constexpr int kThreads = Products::kThreads;
  static constexpr int kTile = Products::kTile;
  static constexpr int64_t kDepth = Products::kSummedBytes;
  /// The tile of products lies where its operands were. With the right products in shared memory
  /// too, it would not fit the 99 KB of GPUs made for graphics.
  static constexpr int kTileBytes = kTile * kTile * int{sizeof(T)};
  static constexpr int kSharedBytes =
      kTileBytes > Products::kSharedBytes ? kTileBytes : Products::kSharedBytes;

  template <class Ctx>
  static NTKFAST_DEVICE void body(const Ctx& ctx, const GhostArgs<T>& args) {
    const int64_t groups = div_up(args.cols.samples, args.cols.group);
    const int64_t i0 = ctx.block_x() / groups * args.rows.group;
    const int64_t j0 = ctx.block_x() % groups * args.cols.group;
    if (args.lower && j0 >= i0 + args.rows.group) return;  // the whole block
    const int64_t row_end = end_of(args.rows, i0), col_end = end_of(args.cols, j0);
    const auto product = ctx.template shared<T>(0, kTile * kTile);
    NTKFAST_KEEP_LOOP
    for (int64_t r = i0 * args.rows.positions; r < row_end; r += kTile) {
      NTKFAST_KEEP_LOOP
      for (int64_t c = j0 * args.cols.positions; c < col_end; c += kTile) {
        typename Products::Sums right;
        clear_sums(right);
        const int pairs = args.rows.combinations * args.cols.combinations;
        // First (-1) the right products, by the same code: it is long, and where there are two of
        // it the compiler keeps sums in memory.
        NTKFAST_KEEP_LOOP
        for (int pair = -1; pair < pairs; ++pair) {
          const bool first = pair < 0;
          const int a = first ? 0 : pair / args.cols.combinations;
          const int b = first ? 0 : pair % args.cols.combinations;
          const TensorOperand left = first ? args.rows.right : of_combination(args.rows, a);
          const TensorOperand left2 = first ? args.cols.right : of_combination(args.cols, b);
          NTKFAST_KEEP_LOOP
          for (int64_t k = 0; k < left.depth_bytes; k += kDepth) {
            typename Products::Sums sums;
            clear_sums(sums);
            Products::add_slice(ctx, slice_of(left, k, kDepth), r, row_end,
                                slice_of(left2, k, kDepth), c, col_end, sums);
            if (first) {
              add_to_sums(right, sums);
              continue;
            }
            each_place(ctx, [&](int at, int i, int j, int lane) {
              product[at] = right[i][j].v[lane] * sums[i][j].v[lane];
            });
            ctx.barrier();
            add_sums(ctx, args, product, r, row_end, c, col_end, a, b);
            ctx.barrier();
          }
        }
      }
    }
  }

 private:
  /// Row after the last one of the group that begins with this sample.
  static NTKFAST_DEVICE int64_t end_of(const GhostSide& side, int64_t first) {
    const int64_t last = first + side.group < side.samples ? first + side.group : side.samples;
    return last * side.positions;
  }
  static NTKFAST_DEVICE TensorOperand of_combination(const GhostSide& side, int combination) {
    TensorOperand left = side.left;
    left.data = static_cast<const unsigned char*>(left.data) + combination * side.left_bytes;
    return left;
  }
  /// Calls visit(place in a tile, and where its number is in the sums of this thread).
  template <class Ctx, class Visit>
  static NTKFAST_DEVICE void each_place(const Ctx& ctx, const Visit& visit) {
    const int row = Products::row(ctx.thread()), col = Products::col(ctx.thread());
    static_assert(Products::kRowStep % 4 == 0, "place() moves the columns of all rows alike");
    NTKFAST_UNROLL_DEVICE
    for (int j = 0; j < Products::kPairs; ++j) {
      const int first = place(row, col + Products::kColStep * j);
      NTKFAST_UNROLL_DEVICE
      for (int i = 0; i < Products::kRows; ++i) {
        NTKFAST_UNROLL_DEVICE
        for (int lane = 0; lane < 2; ++lane)
          visit(first + Products::kRowStep * i * kTile + lane, i, j, lane);
      }
    }
  }
  /// Pairs stay together; the rows that a warp writes at once fall into different banks.
  static NTKFAST_DEVICE int place(int row, int col) { return row * kTile + (col ^ (row % 4 * 8)); }

  /// out += the products of the tile at (r, c), summed over the positions of each pair of samples.
  template <class Ctx, class Product>
  static NTKFAST_DEVICE void add_sums(const Ctx& ctx, const GhostArgs<T>& args, Product product,
                                      int64_t r, int64_t row_end, int64_t c, int64_t col_end, int a,
                                      int b) {
    const int T1 = args.rows.positions, T2 = args.cols.positions;
    const int rows = row_end - r < kTile ? static_cast<int>(row_end - r) : kTile;
    const int cols = col_end - c < kTile ? static_cast<int>(col_end - c) : kTile;
    const int64_t first_row = r / T1, first_col = c / T2;
    const int skipped_rows = static_cast<int>(r - first_row * T1);  // of its first sample
    const int skipped_cols = static_cast<int>(c - first_col * T2);
    const int row_samples = (skipped_rows + rows - 1) / T1 + 1;
    const int col_samples = (skipped_cols + cols - 1) / T2 + 1;
    const int pairs = row_samples * col_samples;
    // A thread for each pair of samples where there are many, otherwise a warp.
    const bool alone = pairs >= kThreads / 4;
    const int lane = alone ? 0 : ctx.thread() % 32, lanes = alone ? 1 : 32;
    NTKFAST_KEEP_LOOP
    for (int pair = ctx.thread() / lanes; pair < pairs; pair += kThreads / lanes) {
      const int i = pair / col_samples, j = pair % col_samples;
      const int row_begin = i * T1 > skipped_rows ? i * T1 - skipped_rows : 0;
      const int col_begin = j * T2 > skipped_cols ? j * T2 - skipped_cols : 0;
      const int row_stop = (i + 1) * T1 - skipped_rows, col_stop = (j + 1) * T2 - skipped_cols;
      T sum(0);
      for (int row = row_begin; row < row_stop && row < rows; ++row)
        for (int col = col_begin + lane; col < col_stop && col < cols; col += lanes)
          sum += static_cast<T>(product[place(row, col)]);
      if (!alone) sum = sum_lanes<32>(ctx, sum);
      if (lane == 0)
        args.out[((first_row + i) * args.rows.combinations + a) * args.out_stride +
                 (first_col + j) * args.cols.combinations + b] += sum;
    }
  }
};

/// Samples of a block: as many as fill a few tiles best.
inline int64_t ghost_group(int64_t positions, int tile) {
  int64_t best = 1, best_tiles = div_up(positions, tile);
  for (int64_t tiles = 1; tiles <= 4; ++tiles) {
    const int64_t samples = tiles * tile / positions;
    if (samples * best_tiles > best * tiles) {
      best = samples;
      best_tiles = tiles;
    }
  }
  return best;
}

/// `args` lacks its groups. No size may be zero.
template <class Products, class Launcher>
void launch_gram_ghost(Launcher& launcher, GhostArgs<typename Products::T> args) {
  args.rows.group = ghost_group(args.rows.positions, Products::kTile);
  args.cols.group = ghost_group(args.cols.positions, Products::kTile);
  launcher.template run<GramGhost<Products>>(
      {div_up(args.rows.samples, args.rows.group) * div_up(args.cols.samples, args.cols.group), 1},
      GramGhost<Products>::kSharedBytes, args);
}

}  // namespace
}  // namespace ntkfast
