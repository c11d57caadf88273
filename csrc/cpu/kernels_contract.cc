// Contractions of per-sample gradients for one instruction set: count-sketches of gradients that
// never exist, and Gram tiles from products over pairs of positions. Compiled once per instruction
// set with NTKFAST_ISA naming it; see kernels.h.
#include "cpu/gemm_tile.h"

namespace ntkfast {
namespace {

/// The 16 sign bits from `bit` on.
NTKFAST_INLINE uint32_t sign_bits(const uint8_t* signs, int64_t bit) {
  const uint8_t* s = signs + (bit >> 3);
  const uint32_t word = s[0] | static_cast<uint32_t>(s[1]) << 8 | static_cast<uint32_t>(s[2]) << 16;
  return word >> (bit & 7) & 0xffff;
}

/// out[j] += +-values[j], minus where the bit `bit + j` is set.
#if defined(__AVX512F__)
NTKFAST_INLINE void add_signed(const float* values, const uint8_t* signs, int64_t bit, float* out,
                               int64_t count) {
  for (int64_t j = 0; j < count; j += 16) {
    const __mmask16 minus = static_cast<__mmask16>(sign_bits(signs, bit + j));
    const __mmask16 lanes = count - j < 16 ? static_cast<__mmask16>((1u << (count - j)) - 1)
                                           : static_cast<__mmask16>(-1);
    const __m512 value = _mm512_maskz_loadu_ps(lanes, values + j);
    const __m512 old = _mm512_maskz_loadu_ps(lanes, out + j);
    const __m512 sum = _mm512_mask_sub_ps(_mm512_add_ps(old, value), minus, old, value);
    _mm512_mask_storeu_ps(out + j, lanes, sum);
  }
}
NTKFAST_INLINE void add_signed(const double* values, const uint8_t* signs, int64_t bit, double* out,
                               int64_t count) {
  for (int64_t j = 0; j < count; j += 8) {
    const __mmask8 minus = static_cast<__mmask8>(sign_bits(signs, bit + j));
    const __mmask8 lanes =
        count - j < 8 ? static_cast<__mmask8>((1u << (count - j)) - 1) : static_cast<__mmask8>(-1);
    const __m512d value = _mm512_maskz_loadu_pd(lanes, values + j);
    const __m512d old = _mm512_maskz_loadu_pd(lanes, out + j);
    const __m512d sum = _mm512_mask_sub_pd(_mm512_add_pd(old, value), minus, old, value);
    _mm512_mask_storeu_pd(out + j, lanes, sum);
  }
}
#else
template <class T>
struct BitsOf;
template <>
struct BitsOf<float> {
  using type = uint32_t;
};
template <>
struct BitsOf<double> {
  using type = uint64_t;
};

template <class T>
NTKFAST_INLINE T flipped(T value, uint32_t minus) {
  using Bits = typename BitsOf<T>::type;
  Bits bits;
  __builtin_memcpy(&bits, &value, sizeof bits);
  bits ^= static_cast<Bits>(minus) << (8 * sizeof(Bits) - 1);
  __builtin_memcpy(&value, &bits, sizeof bits);
  return value;
}

template <class T>
NTKFAST_INLINE void add_signed(const T* values, const uint8_t* signs, int64_t bit, T* out,
                               int64_t count) {
  int64_t j = 0;
  for (; j + 16 <= count; j += 16) {
    const uint32_t minus = sign_bits(signs, bit + j);
    for (int l = 0; l < 16; ++l) out[j + l] += flipped(values[j + l], minus >> l & 1);
  }
  const uint32_t minus = j < count ? sign_bits(signs, bit + j) : 0;
  for (int64_t l = 0; j + l < count; ++l) out[j + l] += flipped(values[j + l], minus >> l & 1);
}
#endif

/// Adds `count` entries of a gradient, the first of them parameter `first` after sketch.start.
template <class T>
NTKFAST_INLINE void add_to_sketch(const Sketch& sketch, const T* values, int64_t first,
                                  int64_t count, T* out) {
  while (count > 0) {
    const int64_t run = (sketch.column + first) / sketch.dim;
    const int64_t column = sketch.column + first - run * sketch.dim;
    const int64_t shifted = column + sketch.shifts[run];
    const int64_t bucket = shifted < sketch.dim ? shifted : shifted - sketch.dim;
    const int64_t furthest = column > bucket ? column : bucket;  // the run ends, or wraps around
    const int64_t length = count < sketch.dim - furthest ? count : sketch.dim - furthest;
    add_signed(values, sketch.signs, sketch.bit + first, out + bucket, length);
    values += length;
    first += length;
    count -= length;
  }
}

template <class T>
void sketch_add(const Sketch& sketch, const T* values, int64_t count, T* out) {
  add_to_sketch(sketch, values, 0, count, out);
}

#if defined(__AVX512F__)
/// Positions [k, k + steps) of 16 columns, transposed: square[i] is position k + i.
template <Run run>
NTKFAST_INLINE void load_square(const float* data, const int32_t* positions, const int32_t* columns,
                                int64_t present, int64_t steps, __m512 (&square)[16]) {
  const __mmask16 part = static_cast<__mmask16>((1u << steps) - 1);
  const __m512i offsets = _mm512_maskz_loadu_epi32(part, positions);
  NTKFAST_UNROLL
  for (int r = 0; r < 16; ++r) {
    if (r >= present) {
      square[r] = _mm512_setzero_ps();
    } else if (run == Run::kWhole) {
      square[r] = _mm512_maskz_loadu_ps(part, data + columns[r] + positions[0]);
    } else if (run == Run::kHalves) {
      square[r] = _mm512_insertf32x8(
          _mm512_castps256_ps512(_mm256_loadu_ps(data + columns[r] + positions[0])),
          _mm256_loadu_ps(data + columns[r] + positions[8]), 1);
    } else {
      square[r] =
          _mm512_mask_i32gather_ps(_mm512_setzero_ps(), part, offsets, data + columns[r], 4);
    }
  }
  transpose_square(square);
}

/// One panel of pack_gathered, columns anywhere.
NTKFAST_INLINE void pack_transposed(const float* data, const Gathered<float>& from,
                                    const int32_t* columns, int64_t count, int64_t depth, int width,
                                    float* out) {
  for (int64_t group = 0; group < width; group += 16) {
    const int64_t present = count > group ? count - group : 0;
    const int64_t wanted = width - group < 16 ? width - group : 16;
    const __mmask16 lanes = static_cast<__mmask16>((1u << wanted) - 1);
    for (int64_t k = 0; k < depth; k += 16) {
      const int64_t steps = depth - k < 16 ? depth - k : 16;
      const int32_t *positions = from.positions + k, *column = columns + group;
      __m512 square[16];
      switch (from.runs[k / 16]) {
        case Run::kWhole:
          load_square<Run::kWhole>(data, positions, column, present, steps, square);
          break;
        case Run::kHalves:
          load_square<Run::kHalves>(data, positions, column, present, steps, square);
          break;
        case Run::kNone:
          load_square<Run::kNone>(data, positions, column, present, steps, square);
          break;
      }
      NTKFAST_UNROLL
      for (int i = 0; i < 16; ++i) {
        if (i < steps) _mm512_mask_storeu_ps(out + (k + i) * width + group, lanes, square[i]);
      }
    }
  }
}
#endif

/// Copies columns [first, first + count) of one sample into panels `width` wide:
/// out[panel][position][column], missing columns zero.
template <class T>
NTKFAST_INLINE void pack_gathered(const Gathered<T>& from, int64_t sample, int64_t first,
                                  int64_t count, int64_t depth, int width, T* out) {
  const T* data = from.data + sample * from.sample_stride;
  for (int64_t panel = 0; panel < count; panel += width, out += width * depth) {
    const int64_t present = count - panel < width ? count - panel : width;
    const int32_t* columns = from.columns + first + panel;
    bool consecutive = true;
    for (int64_t r = 1; r < present; ++r)
      consecutive = consecutive && columns[r] == columns[r - 1] + 1;
    if (consecutive) {
      for (int64_t k = 0; k < depth; ++k) {
        const T* source = data + columns[0] + from.positions[k];
        for (int64_t r = 0; r < present; ++r) out[k * width + r] = source[r];
        for (int64_t r = present; r < width; ++r) out[k * width + r] = T(0);
      }
      continue;
    }
#if defined(__AVX512F__)
    if constexpr (sizeof(T) == 4) {
      pack_transposed(data, from, columns, present, depth, width, out);
      continue;
    }
#endif
    for (int64_t k = 0; k < depth; ++k) {
      const T* source = data + from.positions[k];
      for (int64_t r = 0; r < present; ++r) out[k * width + r] = source[columns[r]];
      for (int64_t r = present; r < width; ++r) out[k * width + r] = T(0);
    }
  }
}

/// Rows of a group up to which its products are dot products.
constexpr int kFewRows = 2;

/// Elements of the packed left factor, in panels or, of few rows, row by row.
template <class T>
int64_t packed_rows(const Gradients<T>& job) {
  return round_up(round_up(job.rows, kPanelRows) * round_up(job.depth, Pack<T>::kLanes), 64);
}

template <class T>
int64_t gradients_scratch(const Gradients<T>& job) {
  const int64_t items = packed_rows(job) + (job.depth + kPanelRows) * kTileCols;
  return round_up(items * static_cast<int64_t>(sizeof(T)), 64);
}

/// One column of a sample at every position, from `out` on; zeros up to a multiple of the lanes.
template <class T>
NTKFAST_INLINE void gather_column(const Gathered<T>& from, int64_t sample, int64_t column,
                                  int64_t depth, T* out) {
  const T* data = from.data + sample * from.sample_stride + from.columns[column];
  for (int64_t k = 0; k < depth; k += 16) {
    const int64_t steps = depth - k < 16 ? depth - k : 16;
    const int32_t* positions = from.positions + k;
    if (from.runs[k / 16] == Run::kWhole) {
      for (int64_t i = 0; i < steps; ++i) out[k + i] = data[positions[0] + i];
    } else {
      for (int64_t i = 0; i < steps; ++i) out[k + i] = data[positions[i]];
    }
  }
  for (int64_t k = depth; k < round_up(depth, Pack<T>::kLanes); ++k) out[k] = T(0);
}

/// form_strips for groups of few rows: packing and padded panels would cost more than the products.
template <class T, class Take>
NTKFAST_INLINE void form_few_rows(const Gradients<T>& job, int64_t sample, void* scratch,
                                  const Take& take) {
  using V = Pack<T>;
  const int64_t padded = round_up(job.depth, V::kLanes);
  T* left = static_cast<T*>(scratch);
  T* right = left + packed_rows(job);
  T* strip = right + job.depth * kTileCols;
  for (int64_t group = 0; group < job.groups; ++group) {
    const int64_t first_row = group * job.rows, first_col = group * job.size;
    for (int64_t i = 0; i < job.rows; ++i)
      gather_column(job.left, sample, first_row + i, job.depth, left + i * padded);
    for (int64_t j0 = 0; j0 < job.size; j0 += kTileCols) {
      const int64_t cols = job.size - j0 < kTileCols ? job.size - j0 : kTileCols;
      for (int64_t j = 0; j < cols; ++j) {
        gather_column(job.right, sample, first_col + j0 + j, job.depth, right);
        for (int64_t i = 0; i < job.rows; ++i) {
          V sum(T(0));
          for (int64_t k = 0; k < padded; k += V::kLanes)
            sum = fma_of(V::load(left + i * padded + k), V::load(right + k), sum);
          strip[i * kTileCols + j] = sum.sum();
        }
      }
      for (int64_t i = 0; i < job.rows; ++i)
        take(strip + i * kTileCols, (first_row + i) * job.size + j0, cols);
    }
  }
}

/// Forms left^T right a strip of one row panel at a time, small enough for the first-level cache,
/// and calls take(values, first entry, count) for each row of it.
template <class T, class Take>
NTKFAST_INLINE void form_strips(const Gradients<T>& job, int64_t sample, void* scratch,
                                const Take& take) {
  if (job.rows <= kFewRows && job.groups > 1) {
    form_few_rows(job, sample, scratch, take);
    return;
  }
  T* left = static_cast<T*>(scratch);
  T* right = left + packed_rows(job);
  T* strip = right + job.depth * kTileCols;
  for (int64_t group = 0; group < job.groups; ++group) {
    const int64_t first_row = group * job.rows, first_col = group * job.size;
    pack_gathered(job.left, sample, first_row, job.rows, job.depth, kPanelRows, left);
    for (int64_t j0 = 0; j0 < job.size; j0 += kTileCols) {
      const int64_t cols = job.size - j0 < kTileCols ? job.size - j0 : kTileCols;
      pack_gathered(job.right, sample, first_col + j0, cols, job.depth, panel_cols<T>(), right);
      for (int64_t i0 = 0; i0 < job.rows; i0 += kPanelRows) {
        for (int64_t i = 0; i < kPanelRows * kTileCols; ++i) strip[i] = T(0);
        for (int64_t k = 0; k < job.depth; k += kSlice) {
          const int64_t slice = job.depth - k < kSlice ? job.depth - k : kSlice;
          for (int64_t j = 0; j < cols; j += panel_cols<T>())
            multiply_panels(slice, left + i0 * job.depth + k * kPanelRows,
                            right + j * job.depth + k * panel_cols<T>(), strip + j, kTileCols);
        }
        const int64_t rows = job.rows - i0 < kPanelRows ? job.rows - i0 : kPanelRows;
        for (int64_t i = 0; i < rows; ++i)
          take(strip + i * kTileCols, (first_row + i0 + i) * job.size + j0, cols);
      }
    }
  }
}

template <class T>
void sketch_gradients(const Gradients<T>& job, const Sketch& sketch, int64_t sample,
                      void* scratch) {
  T* out = job.out + sample * job.out_stride;
  form_strips(job, sample, scratch, [&](const T* values, int64_t first, int64_t count) {
    add_to_sketch(sketch, values, first, count, out);
  });
}

template <class T>
void form_gradients(const Gradients<T>& job, bool add, int64_t sample, void* scratch) {
  T* out = job.out + sample * job.out_stride;
  form_strips(job, sample, scratch, [&](const T* values, int64_t first, int64_t count) {
    T* target = out + first;
    if (add) {
      for (int64_t j = 0; j < count; ++j) target[j] += values[j];
    } else {
      for (int64_t j = 0; j < count; ++j) target[j] = values[j];
    }
  });
}

/// Elements of one packed tile of columns: the right factor, and the left one of each combination.
template <class T>
NTKFAST_INLINE int64_t ghost_tile(const Ghost<T>& job) {
  return kTileCols * (job.combinations2 * job.left_size + job.right_size);
}
/// Elements of the packed rows of a tile, likewise.
template <class T>
NTKFAST_INLINE int64_t ghost_rows(const Ghost<T>& job) {
  return round_up(kTileRows * (job.combinations * job.left_size + job.right_size), 64);
}

template <class T>
int64_t gram_ghost_scratch(const Ghost<T>& job) {
  const int64_t items = ghost_rows(job) + 2 * kTileRows * kTileCols;
  return round_up(items * static_cast<int64_t>(sizeof(T)), 64);
}

template <class T>
void gram_ghost_pack(const Ghost<T>& job, int64_t tile) {
  const int64_t first = tile * kTileCols, missing = job.chunk_cols - first;
  const int64_t cols = missing < kTileCols ? missing : kTileCols, row = job.chunk_begin + first;
  T* out = job.packed + tile * ghost_tile(job);
  pack_rows<T>(job.right2, row, cols, 0, job.right_size, panel_cols<T>(), kTileCols, out);
  out += kTileCols * job.right_size;
  for (int64_t b = 0; b < job.combinations2; ++b, out += kTileCols * job.left_size)
    pack_rows<T>(job.left2, b * job.samples2 * job.positions2 + row, cols, 0, job.left_size,
                 panel_cols<T>(), kTileCols, out);
}

/// out += two tiles of products multiplied and summed over the positions of each pair of samples;
/// the tiles begin at rows r0 and columns c0, `a` and `b` are the combinations.
template <class T>
NTKFAST_INLINE void add_ghost_tile(const Ghost<T>& job, const T* first_product,
                                   const T* second_product, int64_t r0, int64_t rows, int64_t c0,
                                   int64_t cols, int64_t a, int64_t b) {
  using V = Pack<T>;
  constexpr int kPacks = kTileCols / V::kLanes;
  for (int64_t r = 0; r < rows;) {  // a sample of the rows at a time
    const int64_t sample = (r0 + r) / job.positions;
    const int64_t following = (sample + 1) * job.positions - r0;
    const int64_t stop = following < rows ? following : rows;
    T sums[kTileCols];
    for (int j = 0; j < kPacks; ++j) {
      V sum(T(0));
      for (int64_t i = r; i < stop; ++i) {
        const int64_t at = i * kTileCols + j * V::kLanes;
        sum = fma_of(V::load(first_product + at), V::load(second_product + at), sum);
      }
      sum.store(sums + j * V::kLanes);
    }
    T* out = job.out + (sample * job.combinations + a) * job.out_stride + b;
    for (int64_t c = 0; c < cols;) {  // a sample of the columns at a time
      const int64_t other = (c0 + c) / job.positions2;
      const int64_t after = (other + 1) * job.positions2 - c0;
      const int64_t until = after < cols ? after : cols;
      T sum = T(0);
      for (; c < until; ++c) sum += sums[c];
      out[other * job.combinations2] += sum;
    }
    r = stop;
  }
}

/// Samples [begin, end) of the rows against the packed columns.
template <class T>
void gram_ghost_rows(const Ghost<T>& job, int64_t begin, int64_t end, void* scratch) {
  T* right = static_cast<T*>(scratch);
  T* left = right + kTileRows * job.right_size;
  T* right_product = right + ghost_rows(job);
  T* left_product = right_product + kTileRows * kTileCols;
  const int64_t last_row = end * job.positions;
  for (int64_t r0 = begin * job.positions; r0 < last_row; r0 += kTileRows) {
    const int64_t rows = last_row - r0 < kTileRows ? last_row - r0 : kTileRows;
    const int64_t padded = round_up(rows, kPanelRows);
    pack_rows<T>(job.right, r0, rows, 0, job.right_size, kPanelRows, padded, right);
    for (int64_t a = 0; a < job.combinations; ++a)
      pack_rows<T>(job.left, a * job.samples * job.positions + r0, rows, 0, job.left_size,
                   kPanelRows, padded, left + a * kTileRows * job.left_size);
    for (int64_t j0 = 0; j0 < job.chunk_cols; j0 += kTileCols) {
      const int64_t c0 = job.chunk_begin + j0;
      if (job.lower && c0 / job.positions2 >= end) break;
      const int64_t cols = job.chunk_cols - j0 < kTileCols ? job.chunk_cols - j0 : kTileCols;
      const T* packed = job.packed + j0 / kTileCols * ghost_tile(job);
      for (int64_t i = 0; i < kTileRows * kTileCols; ++i) right_product[i] = T(0);
      multiply_tile(job.right_size, padded, right, packed, right_product, cols);
      packed += kTileCols * job.right_size;
      for (int64_t a = 0; a < job.combinations; ++a) {
        for (int64_t b = 0; b < job.combinations2; ++b) {
          for (int64_t i = 0; i < kTileRows * kTileCols; ++i) left_product[i] = T(0);
          multiply_tile(job.left_size, padded, left + a * kTileRows * job.left_size,
                        packed + b * kTileCols * job.left_size, left_product, cols);
          add_ghost_tile(job, left_product, right_product, r0, rows, c0, cols, a, b);
        }
      }
    }
  }
}

template <class T>
constexpr ContractKernels<T> contract_kernels() {
  return {kTileRows,           kTileCols,         sketch_add<T>,         gradients_scratch<T>,
          sketch_gradients<T>, form_gradients<T>, gram_ghost_scratch<T>, gram_ghost_pack<T>,
          gram_ghost_rows<T>};
}

}  // namespace

#define NTKFAST_JOIN_(a, b) a##b
#define NTKFAST_JOIN(a, b) NTKFAST_JOIN_(a, b)

extern const ContractKernels<float> NTKFAST_JOIN(kContractFloat_, NTKFAST_ISA);
const ContractKernels<float> NTKFAST_JOIN(kContractFloat_, NTKFAST_ISA) = contract_kernels<float>();
extern const ContractKernels<double> NTKFAST_JOIN(kContractDouble_, NTKFAST_ISA);
const ContractKernels<double> NTKFAST_JOIN(kContractDouble_,
                                           NTKFAST_ISA) = contract_kernels<double>();

}  // namespace ntkfast
