// Gram matrix of weight gradients from products over pairs of positions, without the gradients:
//     out_ij += sum_{t, s} (left_it . left2_js) (right_it . right2_js).
//
// Both kinds of products are Gram matrices of rows, one for each (sample, position), which
// gram_add forms at the rate of the tensor cores. So a block of either is written to memory, and
// AddGhost multiplies them and adds up the positions of each pair of samples. At a depth of 5000
// that costs a tenth of the products; within one kernel they had to be formed by warps.
#pragma once

#include "cuda/lanes.cuh"

namespace ntkfast {
namespace {

/// One side: rows are (sample, position) pairs, of each combination of the left factor.
struct GhostSide {
  int64_t samples, positions;
  int combinations;
};
/// Neighbouring rows of a side: of whole samples, or of one that has more than are taken at once.
struct GhostRows {
  int64_t first;   // row
  int64_t sample;  // of that row
  int64_t samples, positions;
  NTKFAST_HD int64_t rows() const { return samples * positions; }
};
/// Rows that are taken at once: two square matrices of so many are in memory, and each row is read
/// and packed anew for so many others.
constexpr int64_t kGhostRows = 4096;

inline GhostRows ghost_rows(const GhostSide& side, int64_t first, int64_t most) {
  const int64_t sample = first / side.positions, position = first % side.positions;
  if (side.positions > most) {
    const int64_t left = side.positions - position;
    return {first, sample, 1, left < most ? left : most};
  }
  const int64_t left = side.samples - sample, some = most / side.positions;
  return {first, sample, left < some ? left : some, side.positions};
}

/// Calls visit(rows, columns, above) for all blocks. `above`: only products at most so far above
/// the diagonal are wanted; -1: all of them.
template <class Visit>
void each_ghost_block(const GhostSide& rows, const GhostSide& cols, bool lower, int64_t most,
                      const Visit& visit) {
  GhostRows r{}, c{};
  for (int64_t i = 0; i < rows.samples * rows.positions; i += r.rows()) {
    r = ghost_rows(rows, i, most);
    for (int64_t j = 0; j < cols.samples * cols.positions; j += c.rows()) {
      c = ghost_rows(cols, j, most);
      if (lower && c.sample >= r.sample + r.samples) break;
      const bool diagonal = lower && i == j && r.positions == c.positions;
      visit(r, c, diagonal ? r.positions - 1 : int64_t{-1});
    }
  }
}
/// Numbers of the largest block of products, the first; rows begin at even places.
inline int64_t ghost_products(const GhostSide& rows, const GhostSide& cols, int64_t most) {
  return ghost_rows(rows, 0, most).rows() * round_to(ghost_rows(cols, 0, most).rows(), 2);
}

template <class T>
struct AddGhostArgs {
  const T *left, *right;  // products of rows, `stride` numbers apart
  int64_t stride;
  GhostRows rows, cols;
  T* out;                      // of the first samples
  int64_t row_step, col_step;  // from one sample to the next
  bool lower;
  int64_t group;  // samples of a block's columns
};

/// out += left * right, summed over the positions of each pair of samples. A block takes one sample
/// of the rows and some of the columns.
template <class T>
struct AddGhost {
  static constexpr int kThreads = 256, kColumns = 1024;
  static constexpr int kSharedBytes = (kColumns + kColumns / 32) * int{sizeof(T)};

  template <class Ctx>
  static NTKFAST_DEVICE void body(const Ctx& ctx, const AddGhostArgs<T>& args) {
    const int64_t groups = div_up(args.cols.samples, args.group);
    const int64_t i = ctx.block_x() / groups, j0 = ctx.block_x() % groups * args.group;
    const int64_t last = args.lower ? args.rows.sample + i - args.cols.sample : args.cols.samples;
    if (j0 > last) return;  // the whole block
    const int64_t left_samples = args.cols.samples - j0;
    const int samples = static_cast<int>(left_samples < args.group ? left_samples : args.group);
    const int64_t positions = args.cols.positions, columns = samples * positions;
    const int64_t first = i * args.rows.positions * args.stride + j0 * positions;
    const auto sums = ctx.template shared<T>(0, kColumns + kColumns / 32);
    // A thread for each sample where it has few positions, otherwise a warp.
    const bool alone = positions < 32;
    const int lane = alone ? 0 : ctx.thread() % 32, lanes = alone ? 1 : 32;
    NTKFAST_KEEP_LOOP
    for (int64_t begin = 0; begin < columns; begin += kColumns) {  // several: of one sample
      const int width = columns - begin < kColumns ? static_cast<int>(columns - begin) : kColumns;
      NTKFAST_KEEP_LOOP
      for (int c = ctx.thread(); c < width; c += kThreads) {
        const T *left = args.left + first + begin + c, *right = args.right + first + begin + c;
        T sum(0);
        NTKFAST_UNROLL_FOUR
        for (int64_t t = 0; t < args.rows.positions; ++t)
          sum = fma_of(left[t * args.stride], right[t * args.stride], sum);
        sums[place(c)] = sum;
      }
      ctx.barrier();
      NTKFAST_KEEP_LOOP
      for (int j = ctx.thread() / lanes; j < samples && j0 + j <= last; j += kThreads / lanes) {
        const int64_t from = j * positions,
                      to = from + positions < width ? from + positions : width;
        T sum(0);
        for (int64_t c = from + lane; c < to; c += lanes) sum += sums[place(static_cast<int>(c))];
        if (!alone) sum = sum_lanes<32>(ctx, sum);
        if (lane == 0) args.out[i * args.row_step + (j0 + j) * args.col_step] += sum;
      }
      ctx.barrier();
    }
  }

 private:
  /// Neighbouring samples of 16 positions fall into different banks.
  static NTKFAST_DEVICE int place(int column) { return column + column / 32; }
};

template <class T>
struct GhostArgs {
  GhostSide rows, cols;
  T* out;  // (sample, combination) pairs
  int64_t out_stride;
  bool lower;
  T *left, *right;  // memory for ghost_products numbers each
  int64_t most = kGhostRows;
};

/// multiply(a, b, rows, columns, above, to, stride) forms the products of these rows at `to`: of
/// combinations a and b of the left factors, or where they are -1 of the right ones.
template <class T, class Launcher, class Multiply>
void launch_gram_ghost(Launcher& launcher, const GhostArgs<T>& args, const Multiply& multiply) {
  each_ghost_block(
      args.rows, args.cols, args.lower, args.most,
      [&](const GhostRows& rows, const GhostRows& cols, int64_t above) {
        const int64_t stride = round_to(cols.rows(), 2);
        multiply(-1, -1, rows, cols, above, args.right, stride);
        const int64_t some = AddGhost<T>::kColumns / cols.positions, group = some > 0 ? some : 1;
        for (int a = 0; a < args.rows.combinations; ++a) {
          for (int b = 0; b < args.cols.combinations; ++b) {
            multiply(a, b, rows, cols, above, args.left, stride);
            T* const out = args.out + (rows.sample * args.rows.combinations + a) * args.out_stride +
                           cols.sample * args.cols.combinations + b;
            launcher.template run<AddGhost<T>>(
                {rows.samples * div_up(cols.samples, group), 1}, AddGhost<T>::kSharedBytes,
                AddGhostArgs<T>{args.left, args.right, stride, rows, cols, out,
                                args.rows.combinations * args.out_stride,
                                int64_t{args.cols.combinations}, args.lower, group});
          }
        }
      });
}

}  // namespace
}  // namespace ntkfast
