// The matrix product under everything, by tiles of registers: pack rows into panels, multiply
// panels into a tile.
//
// A tile is kTileRows x kTileCols numbers in the compute type, in cache; what happens to it next
// (scoring, storing) is the caller's business. Products are summed over the depth in a fixed order,
// so results do not depend on how tiles are dealt to threads. Rows of the left operand are
// broadcast, columns of the right one lie along the lanes.
#pragma once

#include "cpu/kernels.h"
#include "cpu/simd.h"

namespace ntkfast {
namespace {

/// Rows per panel and registers per panel row: as many accumulators as the register file holds.
#if defined(__AVX512F__)
constexpr int kPanelRows = 14, kPanelPacks = 2;
#elif defined(__AVX2__) && defined(__FMA__)
constexpr int kPanelRows = 6, kPanelPacks = 2;
#else
constexpr int kPanelRows = 4, kPanelPacks = 2;
#endif
/// Tiles are kTileCols wide for every type and instruction set; about as many rows as fit a
/// multiple of the panel.
constexpr int kTileCols = 128;
constexpr int kTileRows = 112 / kPanelRows * kPanelRows;
/// Depth of a slice. Panels stream from the second-level cache fast enough; shallower slices, whose
/// right panel would stay in the first level, lose more by reading and writing the tile again.
constexpr int kSlice = 4096;

template <class T>
constexpr int panel_cols() {
  return kPanelPacks * Pack<T>::kLanes;
}

constexpr int kMaxPanel = 32;  // rows of the widest panel

constexpr int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

/// tile[i][j] += sum_k a[k][i] b[k][j] for one panel pair.
template <class T>
NTKFAST_INLINE void multiply_panels(int64_t depth, const T* a, const T* b, T* tile, int64_t ld) {
  using V = Pack<T>;
  V sum[kPanelRows][kPanelPacks];
  NTKFAST_UNROLL
  for (int i = 0; i < kPanelRows; ++i) {
    NTKFAST_UNROLL
    for (int j = 0; j < kPanelPacks; ++j) sum[i][j] = V::load(tile + i * ld + j * V::kLanes);
  }
  for (int64_t k = 0; k < depth; ++k) {
    V right[kPanelPacks];
    NTKFAST_UNROLL
    for (int j = 0; j < kPanelPacks; ++j) right[j] = V::load(b + j * V::kLanes);
    NTKFAST_UNROLL
    for (int i = 0; i < kPanelRows; ++i) {
      const V left(a[i]);
      NTKFAST_UNROLL
      for (int j = 0; j < kPanelPacks; ++j) sum[i][j] = fma_of(left, right[j], sum[i][j]);
    }
    a += kPanelRows;
    b += panel_cols<T>();
  }
  NTKFAST_UNROLL
  for (int i = 0; i < kPanelRows; ++i) {
    NTKFAST_UNROLL
    for (int j = 0; j < kPanelPacks; ++j) sum[i][j].store(tile + i * ld + j * V::kLanes);
  }
}

/// tile (rows x kTileCols) += left^T right, in the panels that hold the first `cols` columns.
/// Panels lie one after another, each `depth` deep.
template <class T>
NTKFAST_INLINE void multiply_tile(int64_t depth, int64_t rows, const T* left, const T* right,
                                  T* tile, int64_t cols = kTileCols) {
  for (int64_t k = 0; k < depth; k += kSlice) {
    const int64_t slice = depth - k < kSlice ? depth - k : kSlice;
    for (int64_t j = 0; j < cols; j += panel_cols<T>()) {
      for (int64_t i = 0; i < rows; i += kPanelRows) {
        multiply_panels(slice, left + i * depth + k * kPanelRows,
                        right + j * depth + k * panel_cols<T>(), tile + i * kTileCols + j,
                        kTileCols);
      }
    }
  }
}

#if defined(__AVX512F__)
/// 16 rows of 16 floats -> 16 columns, in registers.
NTKFAST_INLINE void transpose_square(__m512 (&r)[16]) {
  __m512 t[16];
  NTKFAST_UNROLL
  for (int g = 0; g < 16; g += 4) {  // 4 x 4 within each quarter
    const __m512d a = _mm512_castps_pd(_mm512_unpacklo_ps(r[g], r[g + 1]));
    const __m512d b = _mm512_castps_pd(_mm512_unpackhi_ps(r[g], r[g + 1]));
    const __m512d c = _mm512_castps_pd(_mm512_unpacklo_ps(r[g + 2], r[g + 3]));
    const __m512d d = _mm512_castps_pd(_mm512_unpackhi_ps(r[g + 2], r[g + 3]));
    t[g] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, c));
    t[g + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, c));
    t[g + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(b, d));
    t[g + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(b, d));
  }
  NTKFAST_UNROLL
  for (int j = 0; j < 4;
       ++j) {  // quarter q of t[4 g + j] is column 4 q + j of rows 4 g ... 4 g + 3
    const __m512 even_low = _mm512_shuffle_f32x4(t[j], t[4 + j], 0x88);
    const __m512 odd_low = _mm512_shuffle_f32x4(t[j], t[4 + j], 0xdd);
    const __m512 even_high = _mm512_shuffle_f32x4(t[8 + j], t[12 + j], 0x88);
    const __m512 odd_high = _mm512_shuffle_f32x4(t[8 + j], t[12 + j], 0xdd);
    r[j] = _mm512_shuffle_f32x4(even_low, even_high, 0x88);
    r[4 + j] = _mm512_shuffle_f32x4(odd_low, odd_high, 0x88);
    r[8 + j] = _mm512_shuffle_f32x4(even_low, even_high, 0xdd);
    r[12 + j] = _mm512_shuffle_f32x4(odd_low, odd_high, 0xdd);
  }
}

/// pack_rows for rows that lie contiguous and are taken as they are; `source` gives the start of
/// each.
NTKFAST_INLINE void pack_contiguous(const float* const* source, int64_t rows, int64_t depth,
                                    int width, float* out) {
  for (int64_t group = 0; group < width; group += 16) {
    const int64_t present = rows - group < 16 ? (rows > group ? rows - group : 0) : 16;
    const int64_t wanted = width - group < 16 ? width - group : 16;
    const __mmask16 lanes = static_cast<__mmask16>((1u << wanted) - 1);
    for (int64_t k = 0; k < depth; k += 16) {
      const int64_t steps = depth - k < 16 ? depth - k : 16;
      const __mmask16 part = static_cast<__mmask16>((1u << steps) - 1);
      __m512 square[16];
      NTKFAST_UNROLL
      for (int r = 0; r < 16; ++r)
        square[r] =
            r < present ? _mm512_maskz_loadu_ps(part, source[group + r] + k) : _mm512_setzero_ps();
      transpose_square(square);
      NTKFAST_UNROLL
      for (int i = 0; i < 16; ++i) {
        if (i < steps) _mm512_mask_storeu_ps(out + (k + i) * width + group, lanes, square[i]);
      }
    }
  }
}
#endif

/// Copies rows [first, first + count) of an operand into panels `width` wide: out[panel][k][row],
/// missing rows zero. Depth [begin, begin + depth) of the operand is taken.
template <class T, class S>
NTKFAST_INLINE void pack_rows(const Operand<S>& from, int64_t first, int64_t count, int64_t begin,
                              int64_t depth, int width, int64_t padded_count, T* out) {
  constexpr int64_t kChunk =
      64;  // of the depth: the panel's chunk and the source lines stay in cache
  const T sign = from.negate ? T(-1) : T(1);
#if defined(__AVX512F__)
  if constexpr (sizeof(S) == 4 && sizeof(T) == 4) {
    if (from.col_stride == 1 && !from.negate && !from.depth_scale) {
      for (int64_t panel = 0; panel < padded_count; panel += width, out += width * depth) {
        const int64_t rows = count - panel < width ? (count > panel ? count - panel : 0) : width;
        const float* source[kMaxPanel];
        for (int64_t r = 0; r < rows; ++r) {
          const int64_t row = from.index ? from.index[first + panel + r] : first + panel + r;
          source[r] = from.data + row * from.row_stride + begin;
        }
        pack_contiguous(source, rows, depth, width, out);
      }
      return;
    }
  }
#endif
  for (int64_t panel = 0; panel < padded_count; panel += width, out += width * depth) {
    const int64_t rows = count - panel < width ? (count > panel ? count - panel : 0) : width;
    for (int64_t k0 = 0; k0 < depth; k0 += kChunk) {
      const int64_t k1 = k0 + kChunk < depth ? k0 + kChunk : depth;
      for (int64_t r = 0; r < rows; ++r) {
        const int64_t row = from.index ? from.index[first + panel + r] : first + panel + r;
        const S* source = from.data + row * from.row_stride + (begin + k0) * from.col_stride;
        T* target = out + k0 * width + r;
        if (from.depth_scale) {
          for (int64_t k = k0; k < k1; ++k, source += from.col_stride, target += width)
            *target = sign * static_cast<T>(*source * from.depth_scale[begin + k]);
        } else {
          for (int64_t k = k0; k < k1; ++k, source += from.col_stride, target += width)
            *target = sign * static_cast<T>(*source);
        }
      }
      for (int64_t r = rows; r < width; ++r)
        for (int64_t k = k0; k < k1; ++k) out[k * width + r] = T(0);
    }
  }
}

}  // namespace
}  // namespace ntkfast
