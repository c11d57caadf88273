// Rows of float32 numbers as float16 numbers for the tensor cores: one number for each, with the 11
// significant bits of tf32, or two, a large and a small part, with 22 bits.
//
// A row is multiplied by a power of two that brings its largest entry to [2^14, 2^15), near the end
// of float16's range; what is formed of its products is multiplied by the inverse. An entry keeps
// all its bits down to 2^-18 of the row's largest (two numbers) or 2^-28 (one); below, it is rounded
// to 2^-39 of the largest (one: 2^-39 too). A row with an infinite entry or NaN gives NaN.
#pragma once

#include "cuda/tensor_tile.cuh"

namespace ntkfast {
namespace {

/// Where the float16 numbers of rows lie: whole slices of 128 bytes, zeros at the end. A slice holds
/// 64 numbers, or the large and then the small parts of 32.
template <bool kTwo>
struct SplitLayout {
  static constexpr int kSlice = 128, kNumbers = kTwo ? 32 : 64;
  static NTKFAST_HD constexpr int64_t row_bytes(int64_t depth) {
    return depth > 0 ? div_up(depth, kNumbers) * kSlice : int64_t{kSlice};
  }
};

struct SplitRowsArgs {
  const float* data;
  int64_t stride, depth;
  const int64_t* index;  // of the rows to split; null: in order
  int64_t rows, padded_rows;
  unsigned char* out;  // rows of SplitLayout<kTwo>::row_bytes(depth) bytes
  float* scale;        // (padded_rows,) what a row's numbers are to be multiplied by; 0 beyond `rows`
};

/// One warp per row.
template <bool kTwo>
struct SplitRows {
  using Layout = SplitLayout<kTwo>;
  static constexpr int kThreads = 256, kRowsPerBlock = kThreads / 32;
  /// Numbers a lane takes at once: they share a slice.
  static constexpr int kWide = 4;

  template <class Ctx>
  static NTKFAST_DEVICE void body(const Ctx& ctx, const SplitRowsArgs& args) {
    const int lane = ctx.thread() % 32;
    const int64_t row = ctx.block_x() * kRowsPerBlock + ctx.thread() / 32;
    if (row >= args.padded_rows) return;
    if (row >= args.rows) {
      if (lane == 0) args.scale[row] = 0;
      return;
    }
    const float* from = args.data + (args.index ? args.index[row] : row) * args.stride;
    uint32_t largest = 0;  // of absolute values as they are stored: NaN is larger than infinity
    NTKFAST_UNROLL_FOUR
    for (int64_t j = lane; j < args.depth; j += 32) {
      const uint32_t bits = bits_of(from[j]) & 0x7fffffffu;
      largest = bits > largest ? bits : largest;
    }
    NTKFAST_UNROLL_DEVICE
    for (int step = 16; step > 0; step /= 2) {
      const uint32_t other = ctx.shuffle_xor(largest, step);
      largest = other > largest ? other : largest;
    }
    const int exponent = static_cast<int>(largest >> 23) - 127;
    const int wanted = largest == 0 ? 0 : 14 - exponent, power = wanted < 126 ? wanted : 126;
    const float scale = float_of(static_cast<uint32_t>(127 + power) << 23);
    if (lane == 0) args.scale[row] = float_of(static_cast<uint32_t>(127 - power) << 23);
    unsigned char* to = args.out + row * Layout::row_bytes(args.depth);
    const int64_t end = Layout::row_bytes(args.depth) / Layout::kSlice * Layout::kNumbers;
    NTKFAST_UNROLL_TWICE
    for (int64_t j = lane * kWide; j < end; j += 32 * kWide) {
      struct alignas(8) Wide {
        Float16 v[kWide];
      } large, small;
      NTKFAST_UNROLL_DEVICE
      for (int i = 0; i < kWide; ++i) {
        const float x = j + i < args.depth ? scale * from[j + i] : 0.0f;
        large.v[i] = ctx.round_fp16(x);
        small.v[i] = ctx.round_fp16(x - ctx.to_float(large.v[i]));
      }
      unsigned char* place = to + j / Layout::kNumbers * Layout::kSlice + j % Layout::kNumbers * 2;
      *reinterpret_cast<Wide*>(place) = large;
      if (kTwo) *reinterpret_cast<Wide*>(place + Layout::kSlice / 2) = small;
    }
  }
};

/// Rows of one operand, split. Without memory it says how much it needs.
struct SplitOperand {
  int64_t rows, row_bytes;
  float* scale;
  unsigned char* data;

  int64_t padded_rows() const { return round_to(rows, kTensorTile); }
  int64_t scale_bytes() const { return round_to(padded_rows() * int64_t{sizeof(float)}, 256); }
  int64_t bytes() const { return scale_bytes() + round_to(rows * row_bytes, 256); }
  /// The same in memory that is aligned to 256 bytes.
  SplitOperand at(void* memory) const {
    return {rows, row_bytes, static_cast<float*>(memory),
            static_cast<unsigned char*>(memory) + scale_bytes()};
  }
  TensorOperand operand() const { return {data, row_bytes, row_bytes, true}; }
};
inline SplitOperand split_operand(int64_t rows, int64_t depth, bool two) {
  return {rows, two ? SplitLayout<true>::row_bytes(depth) : SplitLayout<false>::row_bytes(depth),
          nullptr, nullptr};
}

template <bool kTwo, class Launcher>
void launch_split_rows(Launcher& launcher, const float* data, int64_t stride, int64_t depth,
                       const int64_t* index, const SplitOperand& to) {
  using Kernel = SplitRows<kTwo>;
  launcher.template run<Kernel>({div_up(to.padded_rows(), Kernel::kRowsPerBlock), 1}, 0,
                                SplitRowsArgs{data, stride, depth, index, to.rows,
                                              to.padded_rows(), to.data, to.scale});
}

}  // namespace
}  // namespace ntkfast
