// Rows as the tensor cores multiply them: 16-bit numbers in slices of 128 bytes, zeros at the end.
//
// bfloat16 numbers are taken as they are. A float32 number becomes one float16 number, with the 11
// significant bits of tf32, or two, a large and a small part, with 22 bits: a slice holds 64
// numbers, or the large and then the small parts of 32. A row of float32 numbers is multiplied by a
// power of two that brings its largest entry to [2^14, 2^15), near the end of float16's range; what
// is formed of its products is multiplied by the inverse. An entry keeps all its bits down to 2^-17
// of the row's largest (two numbers) or 2^-28 (one); below, it is rounded to 2^-39 of the largest.
// A row with an infinite entry or NaN gives infinity or NaN.
//
// Rows lie one after the other for warps, which copy them piece by piece (tensor_tile.cuh), or
// packed for warpgroups (warpgroup_tile.cuh): 128 rows of one slice together, the rest of the
// slices of these rows behind them, then the next 128 rows. Chunk c of 16 bytes of row r then lies
// at place c ^ (r % 8), and the last 128 rows are filled up with zeros.
#pragma once

#include "cuda/tensor_tile.cuh"

namespace ntkfast {
namespace {

/// Bytes of one slice of 128 packed rows.
constexpr int kPackedBytes = kTensorTile * kSliceBytes;

/// What the rows of these products are made of, and numbers of a slice.
template <class Products>
using SourceElement =
    std::conditional_t<std::is_same<typename Products::Element, BFloat16>::value, BFloat16, float>;
template <class Products>
constexpr int kSliceNumbers = Products::kSplit ? 32 : 64;
template <class Products>
NTKFAST_HD constexpr int64_t slices_of(int64_t depth) {
  return depth > 0 ? (depth + kSliceNumbers<Products> - 1) / kSliceNumbers<Products> : 1;
}

/// Rows of one operand, in workspace. Without memory it says how much it needs.
struct OperandRows {
  int64_t rows, slices;
  float* scale;  // (padded_rows(),) what a row's products are to be multiplied by; 0 beyond `rows`
  unsigned char* data;

  NTKFAST_HD int64_t padded_rows() const {
    return (rows + kTensorTile - 1) / kTensorTile * kTensorTile;
  }
  int64_t scale_bytes() const { return round_to(padded_rows() * int64_t{sizeof(float)}, 256); }
  int64_t bytes() const { return scale_bytes() + padded_rows() * slices * kSliceBytes; }
  /// The same in memory that is aligned to 256 bytes.
  OperandRows at(void* memory) const {
    return {rows, slices, static_cast<float*>(memory),
            static_cast<unsigned char*>(memory) + scale_bytes()};
  }
  TensorOperand operand() const { return {data, slices * kSliceBytes, slices * kSliceBytes, true}; }
};
template <class Products>
OperandRows operand_rows(int64_t rows, int64_t depth) {
  return {rows, slices_of<Products>(depth), nullptr, nullptr};
}

/// What a sum of products of two rows stands for. The smaller scale comes first: the sum times the
/// larger one may exceed what float holds.
NTKFAST_HD inline float unscaled(float sum, float a, float b) {
  return sum * (a < b ? a : b) * (a < b ? b : a);
}

template <class Element>
struct FillRowsArgs {
  const Element* data;
  int64_t stride, depth;
  const int64_t* index;  // of the rows to take; null: in order
  OperandRows to;
  bool packed;
};

/// A warp takes a row, or where rows are few kWarps do, a whole block.
template <class Products, int kWarps>
struct FillRows {
  using Element = SourceElement<Products>;
  static constexpr bool kRound = std::is_same<Element, float>::value;
  static constexpr int kThreads = 256, kLanes = 32 * kWarps, kRowsPerBlock = kThreads / kLanes;
  static constexpr int kSharedBytes = kRowsPerBlock == 1 ? kWarps * int{sizeof(uint32_t)} : 0;
  static_assert(kWarps == 1 || kRowsPerBlock == 1, "lanes of a row meet at the block's barrier");
  static constexpr int kNumbers = kSliceNumbers<Products>;
  /// Numbers a lane takes at once: they share a chunk.
  static constexpr int kWide = 4;
  struct alignas(8) Wide {
    uint16_t v[kWide];
  };

  template <class Ctx>
  static NTKFAST_DEVICE void body(const Ctx& ctx, const FillRowsArgs<Element>& args) {
    const int lane = ctx.thread() % kLanes;
    const int64_t row = ctx.block_x() * kRowsPerBlock + ctx.thread() / kLanes;
    const bool is_row = row < args.to.rows;
    const int64_t depth = is_row ? args.depth : 0;
    if (row >= args.to.padded_rows()) return;
    const Element* from = args.data + (!is_row      ? 0
                                       : args.index ? args.index[row]
                                                    : row) *
                                          args.stride;
    float scale = 1;
    if constexpr (kRound) {
      scale = scale_of(ctx, from, depth, lane);
      // A power of two between 2^-114 and 2^126: its inverse differs in the exponent alone.
      if (lane == 0) args.to.scale[row] = is_row ? float_of((254u << 23) - bits_of(scale)) : 0.0f;
    }
    if (!is_row && !args.packed) return;
    const int64_t tile = row / kTensorTile, end = args.to.slices * kNumbers;
    const int swizzle = args.packed ? static_cast<int>(row % 8) : 0;
    unsigned char* const to = args.to.data + (args.packed ? tile * args.to.slices * kPackedBytes +
                                                                row % kTensorTile * kSliceBytes
                                                          : row * args.to.slices * kSliceBytes);
    const int64_t step = args.packed ? kPackedBytes : kSliceBytes;
    NTKFAST_UNROLL_TWICE
    for (int64_t j = lane * kWide; j < end; j += kLanes * kWide) {
      Wide large, small;
      NTKFAST_UNROLL_DEVICE
      for (int i = 0; i < kWide; ++i) {
        if constexpr (kRound) {
          const float x = j + i < depth ? scale * from[j + i] : 0.0f;
          const Float16 rounded = ctx.round_fp16(x);
          large.v[i] = rounded.bits;
          small.v[i] = ctx.round_fp16(x - ctx.to_float(rounded)).bits;
        } else {
          large.v[i] = j + i < depth ? from[j + i].bits : uint16_t{0};
        }
      }
      const auto store = [&](const Wide& value, int byte) {
        unsigned char* const slice = to + j / kNumbers * step;
        *reinterpret_cast<Wide*>(slice + ((byte / 16 ^ swizzle) * 16 + byte % 16)) = value;
      };
      const int byte = static_cast<int>(j % kNumbers) * 2;
      store(large, byte);
      if constexpr (Products::kSplit) store(small, byte + kSliceBytes / 2);
    }
  }

 private:
  template <class Ctx>
  static NTKFAST_DEVICE float scale_of(const Ctx& ctx, const float* from, int64_t depth, int lane) {
    uint32_t largest = 0;  // of absolute values as they are stored: NaN is larger than infinity
    NTKFAST_UNROLL_FOUR
    for (int64_t j = lane; j < depth; j += kLanes) {
      const uint32_t bits = bits_of(from[j]) & 0x7fffffffu;
      largest = bits > largest ? bits : largest;
    }
    NTKFAST_UNROLL_DEVICE
    for (int step = 16; step > 0; step /= 2) {
      const uint32_t other = ctx.shuffle_xor(largest, step);
      largest = other > largest ? other : largest;
    }
    if constexpr (kWarps > 1) {
      const auto of_warps = ctx.template shared<uint32_t>(0, kWarps);
      if (lane % 32 == 0) of_warps[lane / 32] = largest;
      ctx.barrier();
      NTKFAST_UNROLL_DEVICE
      for (int warp = 0; warp < kWarps; ++warp) {
        const uint32_t other = of_warps[warp];
        largest = other > largest ? other : largest;
      }
    }
    const int exponent = static_cast<int>(largest >> 23) - 127;
    const int wanted = largest == 0 ? 0 : 14 - exponent, power = wanted < 126 ? wanted : 126;
    return float_of(static_cast<uint32_t>(127 + power) << 23);
  }
};

template <class Products, int kWarps, class Launcher, class Args>
void launch_fill_rows_by(Launcher& launcher, const Args& args) {
  using Kernel = FillRows<Products, kWarps>;
  launcher.template run<Kernel>({div_up(args.to.padded_rows(), Kernel::kRowsPerBlock), 1},
                                Kernel::kSharedBytes, args);
}
template <class Products, class Launcher>
void launch_fill_rows(Launcher& launcher, const SourceElement<Products>* data, int64_t stride,
                      int64_t depth, const int64_t* index, const OperandRows& to, bool packed) {
  constexpr int kWarps = 8;
  constexpr int64_t kFull = 64, kLong = 2048;  // warps of a multiprocessor; numbers of a row
  const FillRowsArgs<SourceElement<Products>> args{data, stride, depth, index, to, packed};
  if (to.padded_rows() < kFull * launcher.multiprocessors() && depth >= kLong) {
    launch_fill_rows_by<Products, kWarps>(launcher, args);
  } else {
    launch_fill_rows_by<Products, 1>(launcher, args);
  }
}

}  // namespace
}  // namespace ntkfast
