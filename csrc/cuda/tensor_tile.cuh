// The matrix product on tensor cores: mma.sync fed by cp.async, a tile of 128 x 128 or 128 x 64
// float32 sums in the registers of 256 threads. What happens to the tile next (scoring, adding)
// is the caller's business.
//
// The 8 warps of a block hold 64 x 32 or 32 x 32 sums each. Rows of both operands stream through
// slices of 128 bytes in shared memory. Rows of a slice are eight chunks of 16 bytes, chunk c of
// row r at place c ^ (r % 8), so that neither the copies nor ldmatrix meet a bank twice.
//
// Tensor cores cut off what a sum cannot hold instead of rounding it. Where products add up without
// cancelling, a sum of n instructions is about 2^-25 n of itself too small: 4e-5 for three products
// at a depth of 5000. So that many go into sums of their own, kSummedSlices slices at a time, which
// are added up outside.
#pragma once

#include <type_traits>

#include "cuda/lanes.cuh"

namespace ntkfast {
namespace {

/// Rows of the left operand of a block, and of the right one at most.
constexpr int kTensorTile = 128;
/// Bytes of a row that are multiplied at once.
constexpr int kSliceBytes = 128;

/// How products are formed; sums are float32 always.
struct Bf16Products {  // of bfloat16 numbers: exact
  using Element = BFloat16;
  using Operand = Bf16;
  static constexpr bool kSplit = false;
  static constexpr int kSummedSlices = 32;
};
/// Of float32 numbers rounded to float16 numbers and a power of two per row (operand_rows.cuh).
struct Fp16Products {
  using Element = Float16;
  using Operand = Fp16;
  static constexpr bool kSplit = false;
  static constexpr int kSummedSlices = 32;
};
/// Of float32 numbers as sums of two float16 numbers; the product of the small parts is dropped.
/// Short sums leave 5e-7 of what is cut off, less than the rounding of float32 adds up to.
struct SplitFp16Products {
  using Element = Float16;
  using Operand = Fp16;
  static constexpr bool kSplit = true;
  static constexpr int kSummedSlices = 4;
};

/// A matrix whose rows are multiplied.
struct TensorOperand {
  const void* data;
  int64_t row_bytes;    // from one row to the next
  int64_t depth_bytes;  // of one row
  bool aligned;         // rows start at multiples of 16 bytes
};
template <class Element>
TensorOperand tensor_operand(const Element* data, int64_t row_stride, int64_t depth) {
  const int64_t row_bytes = row_stride * int64_t{sizeof(Element)};
  return {data, row_bytes, depth * int64_t{sizeof(Element)},
          row_bytes % 16 == 0 && reinterpret_cast<uintptr_t>(data) % 16 == 0};
}

/// A stretch of the rows' depth.
NTKFAST_DEVICE TensorOperand slice_of(TensorOperand from, int64_t begin, int64_t bytes) {
  const int64_t left = from.depth_bytes - begin;
  from.data = static_cast<const unsigned char*>(from.data) + begin;
  from.depth_bytes = left < bytes ? left : bytes;
  return from;
}

template <class T, int R, int N>
NTKFAST_DEVICE void clear_sums(Pair<T> (&sums)[R][N]) {
  NTKFAST_UNROLL_DEVICE
  for (int r = 0; r < R; ++r) {
    NTKFAST_UNROLL_DEVICE
    for (int n = 0; n < N; ++n) sums[r][n] = Pair<T>(T(0));
  }
}

template <class T, int R, int N>
NTKFAST_DEVICE void add_to_sums(Pair<T> (&total)[R][N], const Pair<T> (&sums)[R][N]) {
  NTKFAST_UNROLL_DEVICE
  for (int r = 0; r < R; ++r) {
    NTKFAST_UNROLL_DEVICE
    for (int n = 0; n < N; ++n) total[r][n] = total[r][n] + sums[r][n];
  }
}

/// `WarpRows`: 64, or 32 for a tile half as wide, which takes half the registers.
template <class Products, int WarpRows = 64>
struct TensorTile {
  static constexpr int kThreads = 256;
  static constexpr int kTile = kTensorTile;
  static constexpr int kWarpRows = WarpRows;
  static constexpr int kWarpColumns = WarpRows / 16;  // warps side by side
  static constexpr int kColumns = 32 * kWarpColumns;
  static constexpr int kStages = 3;
  static constexpr int kSlice = kSliceBytes;
  static constexpr int kChunks = kSlice / 16;
  static constexpr int kStageBytes = (kTile + kColumns) * kSlice;
  static constexpr int kSharedBytes = kStages * kStageBytes;
  static constexpr int kRows = WarpRows / 8, kPairs = 4;
  static constexpr int kRowStep = 8, kColStep = 8;
  /// Float16 numbers come from operand_rows.cuh.
  static constexpr bool kAlwaysAligned = std::is_same<typename Products::Element, Float16>::value;
  /// sums[r][n]: row 8 r + lane / 4, columns 8 n + 2 (lane % 4), + 1 of the warp's part.
  using Sums = Pair<float>[kRows][kPairs];
  static NTKFAST_DEVICE int row(int thread) {
    return kWarpRows * (thread / 32 / kWarpColumns) + thread % 32 / 4;
  }
  static NTKFAST_DEVICE int col(int thread) {
    return 32 * (thread / 32 % kWarpColumns) + 2 * (thread % 4);
  }

  /// Where this thread reads: its chunk of rows first + 32 i of an operand, slice after slice.
  template <int kCount>
  struct Source {
    const unsigned char* place[kCount];
    unsigned inside;  // bit i: row i is one of the operand's

    /// Rows `first` + 32 i below `count`, as `index` names them.
    NTKFAST_DEVICE void find(int thread, const TensorOperand& from, const int64_t* index,
                             int64_t first, int64_t count) {
      inside = 0;
      NTKFAST_UNROLL_DEVICE
      for (int i = 0; i < kCount; ++i) {
        const int64_t at = first + thread / kChunks + 32 * i;
        const bool is_row = at < count;
        const int64_t row = !is_row ? 0 : index ? index[at] : at;
        place[i] = static_cast<const unsigned char*>(from.data) + row * from.row_bytes +
                   thread % kChunks * 16;
        inside |= is_row ? 1u << i : 0u;
      }
    }
  };
  using LeftSource = Source<kTile / 32>;
  using RightSource = Source<kColumns / 32>;

  /// Starts copying a slice of the rows into shared memory; what lies beyond the data becomes zero.
  template <class Ctx, int kCount, class Memory>
  static NTKFAST_DEVICE void copy_slice(const Ctx& ctx, const TensorOperand& from,
                                        const Source<kCount>& source, int slice, Memory to) {
    const int r = ctx.thread() / kChunks, chunk = ctx.thread() % kChunks;
    int64_t offset = int64_t{slice} * kSlice;
    const int64_t left = from.depth_bytes - offset - chunk * 16;
    const int valid = left >= 16 ? 16 : left > 0 ? static_cast<int>(left) : 0;
    if (valid == 0) offset = -16 * chunk;  // nothing is read there; all the same inside the row
    const auto place = to + (r * kSlice + (chunk ^ (r % kChunks)) * 16);
    if (kAlwaysAligned || from.aligned) {
      NTKFAST_UNROLL_DEVICE
      for (int i = 0; i < kCount; ++i) {
        const int bytes = source.inside >> i & 1 ? valid : 0;
        ctx.copy_async(place + 32 * i * kSlice, source.place[i] + offset, bytes);
      }
    } else {
      NTKFAST_UNROLL_DEVICE
      for (int i = 0; i < kCount; ++i)
        copy_unaligned(place + 32 * i * kSlice, source.place[i] + offset,
                       source.inside >> i & 1 ? valid : 0);
    }
  }

  /// sums += A B^T over one slice: kWarpRows rows of `a`, 32 rows of `b`, steps of 32 bytes.
  template <class Ctx, class Memory>
  static NTKFAST_DEVICE void multiply_slice(const Ctx& ctx, Memory a, Memory b, int lane,
                                            Sums& sums) {
    const int row = lane % 8, matrix = lane / 8;
    // 32 bytes of 16 rows, and where they are split also the small parts, behind the large ones.
    const auto load = [&](Memory from, int r, int chunk, uint32_t (&value)[4],
                          uint32_t (&small)[4]) {
      ctx.load_matrices(from + (r * kSlice + (chunk ^ row) * 16), value);
      if constexpr (Products::kSplit)
        ctx.load_matrices(from + (r * kSlice + ((chunk + kChunks / 2) ^ row) * 16), small);
    };
    NTKFAST_UNROLL_DEVICE
    for (int s = 0; s < kSlice / (Products::kSplit ? 64 : 32); ++s) {
      // Registers of A: rows 0-7 and 8-15 of the first 16 bytes, then of the second. Of B: first
      // and second 16 bytes of columns 0-7, then of columns 8-15.
      uint32_t right[2][4], right_small[2][4];
      NTKFAST_UNROLL_DEVICE
      for (int n = 0; n < 2; ++n) {
        load(b, 16 * n + row + 8 * (matrix / 2), 2 * s + matrix % 2, right[n], right_small[n]);
      }
      NTKFAST_UNROLL_DEVICE
      for (int m = 0; m < kRows / 2; ++m) {
        uint32_t left[4], left_small[4];
        load(a, 16 * m + row + 8 * (matrix % 2), 2 * s + matrix / 2, left, left_small);
        NTKFAST_UNROLL_DEVICE
        for (int n = 0; n < 4; ++n) {
          const int i = n / 2, j = 2 * (n % 2);
          float c[4] = {sums[2 * m][n].v[0], sums[2 * m][n].v[1], sums[2 * m + 1][n].v[0],
                        sums[2 * m + 1][n].v[1]};
          const typename Products::Operand type{};
          if constexpr (Products::kSplit) {  // small terms first
            ctx.multiply(type, c, left_small, right[i][j], right[i][j + 1]);
            ctx.multiply(type, c, left, right_small[i][j], right_small[i][j + 1]);
          }
          ctx.multiply(type, c, left, right[i][j], right[i][j + 1]);
          sums[2 * m][n].v[0] = c[0];
          sums[2 * m][n].v[1] = c[1];
          sums[2 * m + 1][n].v[0] = c[2];
          sums[2 * m + 1][n].v[1] = c[3];
        }
      }
    }
  }

  /// total += sums, which begin anew.
  static NTKFAST_DEVICE void move_sums(Sums& total, Sums& sums) {
    add_to_sums(total, sums);
    clear_sums(sums);
  }

  /// sums += products of rows [row0, row0 + kTile) of the left and [col0, col0 + kColumns) of the
  /// right operand; rows from `rows` and `cols` on count as zero. after_slice(slices done, all
  /// slices) is called after every slice. Uses the first kSharedBytes of shared memory, free again
  /// when it returns.
  template <class Ctx, class AfterSlice>
  static NTKFAST_DEVICE void stream(const Ctx& ctx, const TensorOperand& left, int64_t row0,
                                    int64_t rows, const TensorOperand& right, int64_t col0,
                                    int64_t cols, Sums& sums, const AfterSlice& after_slice) {
    const int thread = ctx.thread(), lane = thread % 32, warp = thread / 32;
    const int left_part = kWarpRows * (warp / kWarpColumns) * kSlice;
    const int right_part = (kTile + 32 * (warp % kWarpColumns)) * kSlice;
    const auto memory = ctx.template shared<unsigned char>(0, kSharedBytes);
    const int slices = static_cast<int>(div_up(left.depth_bytes, kSlice));
    LeftSource left_rows;
    RightSource right_rows;
    left_rows.find(thread, left, nullptr, row0, rows);
    right_rows.find(thread, right, nullptr, col0, cols);
    const auto issue = [&](int slice) {
      const auto stage = memory + (slice % kStages) * kStageBytes;
      copy_slice(ctx, left, left_rows, slice, stage);
      copy_slice(ctx, right, right_rows, slice, stage + kTile * kSlice);
    };
    NTKFAST_UNROLL_DEVICE
    for (int s = 0; s < kStages - 1; ++s) {
      if (s < slices) issue(s);
      ctx.commit_copies();
    }
    NTKFAST_KEEP_LOOP
    for (int slice = 0; slice < slices; ++slice) {
      ctx.template wait_copies<kStages - 2>();
      ctx.barrier();  // everybody has finished the previous slice
      if (slice + kStages - 1 < slices) issue(slice + kStages - 1);
      ctx.commit_copies();
      const auto stage = memory + (slice % kStages) * kStageBytes;
      multiply_slice(ctx, stage + left_part, stage + right_part, lane, sums);
      after_slice(slice + 1, slices);
    }
    ctx.template wait_copies<0>();
    ctx.barrier();
  }

 private:
  /// The same for a chunk whose address is no multiple of 16.
  template <class Memory>
  static NTKFAST_DEVICE void copy_unaligned(Memory place, const unsigned char* source, int valid) {
    NTKFAST_UNROLL_DEVICE
    for (int e = 0; e < 16; e += int{sizeof(typename Products::Element)}) {
      typename Products::Element value{};
      if (e < valid) value = *reinterpret_cast<const typename Products::Element*>(source + e);
      store_element(place, e, value);
    }
  }

  template <class Memory, class Element>
  static NTKFAST_DEVICE void store_element(Memory to, int offset, Element value) {
    unsigned char bytes[sizeof(Element)];
    memcpy(bytes, &value, sizeof value);
    NTKFAST_UNROLL_DEVICE
    for (int b = 0; b < int{sizeof(Element)}; ++b) to[offset + b] = bytes[b];
  }
};

}  // namespace
}  // namespace ntkfast
