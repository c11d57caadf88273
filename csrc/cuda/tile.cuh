// The plain matrix product under everything that does not run on tensor cores: a tile of 64 x 64
// numbers in the registers of 256 threads, in float or double. What happens to the tile next
// (storing, scoring) is the caller's business.
#pragma once

#include "cuda/lanes.cuh"

namespace ntkfast {
namespace {

constexpr int kTileThreads = 256;
constexpr int kTileSize = 64;
constexpr int kTileDepth = 16;
/// Even, so that pairs stay aligned; 16 numbers along the depth and two rows fall into different
/// banks.
constexpr int kTileStride = kTileSize + 2;

template <class T>
constexpr int tile_shared_bytes() {
  return 2 * kTileDepth * kTileStride * int{sizeof(T)};
}

/// A matrix operand: element (row, k) at data[index[row] * row_stride + k * col_stride].
template <class S>
struct Factor {
  const S* data;
  int64_t row_stride, col_stride;
  const int64_t* index = nullptr;  // nullptr: rows in order
};

/// Thread t holds rows row(t) + 16 i and columns col(t) + 32 j, + 1 of the tile.
template <class T>
struct Tile {
  Pair<T> value[4][2];
  static NTKFAST_DEVICE int row(int thread) { return thread / 16; }
  static NTKFAST_DEVICE int col(int thread) { return 2 * (thread % 16); }
  NTKFAST_DEVICE void clear() {
    NTKFAST_UNROLL_DEVICE
    for (int i = 0; i < 4; ++i) {
      NTKFAST_UNROLL_DEVICE
      for (int j = 0; j < 2; ++j) value[i][j] = Pair<T>(T(0));
    }
  }
};

template <class T, class S>
NTKFAST_DEVICE T element(const Factor<S>& from, int64_t row, int64_t rows, int64_t k,
                         int64_t depth) {
  if (row >= rows || k >= depth) return T(0);
  const int64_t source = from.index ? from.index[row] : row;
  return number<T>(from.data[source * from.row_stride + k * from.col_stride]);
}

/// tile(i, j) += sum_k left(row0 + i, k) right(col0 + j, k), k in [0, depth) in this order; rows
/// and columns beyond the operands' ends count as zero. Uses the first tile_shared_bytes<T>() of
/// shared memory, free again when it returns.
template <class Ctx, class T, class SA, class SB>
NTKFAST_DEVICE void multiply_tile(const Ctx& ctx, int64_t depth, const Factor<SA>& left,
                                  int64_t row0, int64_t rows, const Factor<SB>& right, int64_t col0,
                                  int64_t cols, Tile<T>& tile) {
  constexpr int kElements = kTileDepth * kTileStride;
  const auto a = ctx.template shared<T>(0, kElements);
  const auto b = ctx.template shared<T>(kElements * int{sizeof(T)}, kElements);
  const int thread = ctx.thread(), row = Tile<T>::row(thread), col = Tile<T>::col(thread);
  // Neighbouring threads read neighbouring numbers, whichever way the operand lies.
  const bool left_along_depth = left.col_stride == 1, right_along_depth = right.col_stride == 1;
  for (int64_t k0 = 0; k0 < depth; k0 += kTileDepth) {
    NTKFAST_UNROLL_DEVICE
    for (int i = 0; i < kTileDepth * kTileSize / kTileThreads; ++i) {
      const int e = thread + i * kTileThreads;
      const int ka = left_along_depth ? e % kTileDepth : e / kTileSize;
      const int ra = left_along_depth ? e / kTileDepth : e % kTileSize;
      const int kb = right_along_depth ? e % kTileDepth : e / kTileSize;
      const int rb = right_along_depth ? e / kTileDepth : e % kTileSize;
      a[ka * kTileStride + ra] = element<T>(left, row0 + ra, rows, k0 + ka, depth);
      b[kb * kTileStride + rb] = element<T>(right, col0 + rb, cols, k0 + kb, depth);
    }
    ctx.barrier();
    NTKFAST_UNROLL_DEVICE
    for (int k = 0; k < kTileDepth; ++k) {
      Pair<T> right_pair[2];
      NTKFAST_UNROLL_DEVICE
      for (int j = 0; j < 2; ++j) right_pair[j] = load_pair(b + (k * kTileStride + col + 32 * j));
      NTKFAST_UNROLL_DEVICE
      for (int i = 0; i < 4; ++i) {
        const Pair<T> left_value(a[k * kTileStride + row + 16 * i]);
        NTKFAST_UNROLL_DEVICE
        for (int j = 0; j < 2; ++j)
          tile.value[i][j] = fma_of(left_value, right_pair[j], tile.value[i][j]);
      }
    }
    ctx.barrier();
  }
}

}  // namespace
}  // namespace ntkfast
