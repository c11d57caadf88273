// The matrix product in double on tensor cores: a tile of 128 x 128 numbers in the registers of 256
// threads. Its operands may be stored in less; products and sums are double.
#pragma once

#include "cuda/lanes.cuh"

namespace ntkfast {
namespace {

constexpr int kDoubleThreads = 256;
constexpr int kDoubleSize = 128, kDoubleDepth = 16;
/// A quarter of the 16 banks of double more than a multiple of them: the four numbers along the
/// depth and four rows that half a warp reads lie in different ones.
constexpr int kDoubleStride = kDoubleSize + 4;
constexpr int kDoublePanel = kDoubleDepth * kDoubleStride;

/// Two stages of two panels.
constexpr int kDoubleTileBytes = 4 * kDoublePanel * int{sizeof(double)};

#if defined(__CUDACC__)
/// C (16 x 8) += A (16 x 8) B (8 x 8) in the fragment layouts of mma.m16n8k8 of double, which are
/// those of four m8n8k4: with g = lane / 4 and t = lane % 4, a[2 s + h] is A(g + 8 h, 4 s + t),
/// b[s] is B(4 s + t, g), and c[2 h + l] is C(g + 8 h, 2 t + l).
NTKFAST_DEVICE void multiply_fragments(const Context&, double (&c)[4], const double (&a)[4],
                                       const double (&b)[2]) {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f64.f64.f64.f64 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+d"(c[0]), "+d"(c[1]), "+d"(c[2]), "+d"(c[3])
      : "d"(a[0]), "d"(a[1]), "d"(a[2]), "d"(a[3]), "d"(b[0]), "d"(b[1]));
#else
  NTKFAST_UNROLL_DEVICE
  for (int s = 0; s < 2; ++s) {
    NTKFAST_UNROLL_DEVICE
    for (int h = 0; h < 2; ++h)
      asm volatile("mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%0, %1}, {%2}, {%3}, {%0, %1};"
                   : "+d"(c[2 * h]), "+d"(c[2 * h + 1])
                   : "d"(a[2 * s + h]), "d"(b[s]));
  }
#endif
}
#endif

/// An operand whose rows lie side by side: element (row, k) at data[k * stride + row], times
/// scale[k] where there is one.
template <class S>
struct SideBySide {
  const S* data;
  int64_t stride;
  const double* scale = nullptr;

  struct Numbers {
    S value[2][4];
    double scale[2];
  };
  NTKFAST_DEVICE void fetch(int thread, int64_t row0, int64_t rows, int64_t k0, int64_t depth,
                            Numbers& out) const {
    const int64_t row = row0 + thread % 32;
    NTKFAST_UNROLL_DEVICE
    for (int i = 0; i < 2; ++i) {
      const int64_t k = k0 + thread / 32 + 8 * i;
      const S* from = data + k * stride + row;
      out.scale[i] = scale && k < depth ? scale[k] : 1.0;
      NTKFAST_UNROLL_DEVICE
      for (int j = 0; j < 4; ++j)
        out.value[i][j] = k < depth && row + 32 * j < rows ? from[32 * j] : S{};
    }
  }
  template <class Panel>
  static NTKFAST_DEVICE void store(int thread, const Numbers& numbers, const Panel& to) {
    NTKFAST_UNROLL_DEVICE
    for (int i = 0; i < 2; ++i) {
      NTKFAST_UNROLL_DEVICE
      for (int j = 0; j < 4; ++j)
        to[(thread / 32 + 8 * i) * kDoubleStride + thread % 32 + 32 * j] =
            number<double>(numbers.value[i][j]) * numbers.scale[i];
    }
  }
};

/// An operand row by row: element (row, k) at data[row * stride + k].
template <class S>
struct RowByRow {
  const S* data;
  int64_t stride;

  struct Numbers {
    S value[8];
  };
  NTKFAST_DEVICE void fetch(int thread, int64_t row0, int64_t rows, int64_t k0, int64_t depth,
                            Numbers& out) const {
    const int64_t row = row0 + thread / kDoubleDepth, k = k0 + thread % kDoubleDepth;
    const S* from = data + row * stride + k;
    NTKFAST_UNROLL_DEVICE
    for (int j = 0; j < 8; ++j)
      out.value[j] = k < depth && row + 16 * j < rows ? from[16 * j * stride] : S{};
  }
  template <class Panel>
  static NTKFAST_DEVICE void store(int thread, const Numbers& numbers, const Panel& to) {
    NTKFAST_UNROLL_DEVICE
    for (int j = 0; j < 8; ++j)
      to[thread % kDoubleDepth * kDoubleStride + thread / kDoubleDepth + 16 * j] =
          number<double>(numbers.value[j]);
  }
};

/// A warp holds 64 rows and 32 columns, in fragments of 16 x 8.
struct DoubleTile {
  double value[4][4][4];

  NTKFAST_DEVICE void clear() {
    NTKFAST_UNROLL_DEVICE
    for (int m = 0; m < 4; ++m) {
      NTKFAST_UNROLL_DEVICE
      for (int n = 0; n < 4; ++n) {
        NTKFAST_UNROLL_DEVICE
        for (int e = 0; e < 4; ++e) value[m][n][e] = 0.0;
      }
    }
  }
  /// Place of value[m][n][e] in the tile.
  static NTKFAST_DEVICE int row(int thread, int m, int e) {
    return thread / 128 * 64 + 16 * m + thread % 32 / 4 + 8 * (e / 2);
  }
  static NTKFAST_DEVICE int col(int thread, int n, int e) {
    return thread / 32 % 4 * 32 + 8 * n + 2 * (thread % 4) + e % 2;
  }
};

/// tile(i, j) += sum_k left(row0 + i, k) right(col0 + j, k), k in [first, end) in this order; rows
/// and columns beyond the operands' ends count as zero. Uses the first kDoubleTileBytes of
/// shared memory, free again when it returns.
template <class Ctx, class Left, class Right>
NTKFAST_DEVICE void multiply_doubles(const Ctx& ctx, int64_t first, int64_t end, const Left& left,
                                     int64_t row0, int64_t rows, const Right& right, int64_t col0,
                                     int64_t cols, DoubleTile& tile) {
  const auto memory = ctx.template shared<double>(0, 4 * kDoublePanel);
  const int thread = ctx.thread(), g = thread % 32 / 4, t = thread % 4;
  const int row = thread / 128 * 64 + g, col = thread / 32 % 4 * 32 + g;
  typename Left::Numbers a_next;
  typename Right::Numbers b_next;
  if (first >= end) return;  // the whole block
  left.fetch(thread, row0, rows, first, end, a_next);
  right.fetch(thread, col0, cols, first, end, b_next);
  Left::store(thread, a_next, memory);
  Right::store(thread, b_next, memory + kDoublePanel);
  ctx.barrier();
  int stage = 0;
  NTKFAST_KEEP_LOOP
  for (int64_t k0 = first; k0 < end; k0 += kDoubleDepth) {
    const bool more = k0 + kDoubleDepth < end;
    if (more) {
      left.fetch(thread, row0, rows, k0 + kDoubleDepth, end, a_next);
      right.fetch(thread, col0, cols, k0 + kDoubleDepth, end, b_next);
    }
    const auto a_panel = memory + 2 * stage * kDoublePanel, b_panel = a_panel + kDoublePanel;
    NTKFAST_UNROLL_DEVICE
    for (int k = 0; k < kDoubleDepth; k += 8) {
      double a[4][4];
      NTKFAST_UNROLL_DEVICE
      for (int m = 0; m < 4; ++m) {
        NTKFAST_UNROLL_DEVICE
        for (int e = 0; e < 4; ++e)
          a[m][e] = a_panel[(k + 4 * (e / 2) + t) * kDoubleStride + row + 16 * m + 8 * (e % 2)];
      }
      NTKFAST_UNROLL_DEVICE
      for (int n = 0; n < 4; ++n) {
        double b[2];
        NTKFAST_UNROLL_DEVICE
        for (int s = 0; s < 2; ++s) b[s] = b_panel[(k + 4 * s + t) * kDoubleStride + col + 8 * n];
        NTKFAST_UNROLL_DEVICE
        for (int m = 0; m < 4; ++m) multiply_fragments(ctx, tile.value[m][n], a[m], b);
      }
      // Half way, where one warp converts while the tensor cores work for the other.
      if (k == 0 && more) {
        Left::store(thread, a_next, memory + 2 * (1 - stage) * kDoublePanel);
        Right::store(thread, b_next, memory + (2 * (1 - stage) + 1) * kDoublePanel);
      }
    }
    stage = 1 - stage;
    ctx.barrier();
  }
}

}  // namespace
}  // namespace ntkfast
