// The matrix product on the tensor cores of compute capability 9.0: wgmma fed by cp.async, a tile of
// 128 x 128 float32 sums in the registers of two warpgroups. Both operands are read from shared
// memory, where they lie as in tensor_tile.cuh; no thread loads fragments, and products go on while
// threads do something else.
#pragma once

#include "cuda/tensor_tile.cuh"

namespace ntkfast {
namespace {

template <class Products>
struct WarpgroupTile : TensorTile<Products> {
  using Base = TensorTile<Products>;
  using Operand = typename Products::Operand;
  static constexpr int kSlice = Base::kSlice, kTile = Base::kTile;
  static_assert(Base::kColumns == 128 && Base::kThreads == 256, "as multiply_shared says");
  static_assert(sizeof(typename Products::Element) == 2, "wgmma cuts float32 off to tf32");
  static constexpr int kRows = 2, kPairs = 16;
  /// sums[r][n]: row 8 r, columns 8 n, + 1 of what row() and col() say.
  using Sums = Pair<float>[kRows][kPairs];
  static NTKFAST_DEVICE int row(int thread) { return 16 * (thread / 32) + thread % 32 / 4; }
  static NTKFAST_DEVICE int col(int thread) { return 2 * (thread % 4); }

  /// Starts sums += A B^T over the slice in `stage`; without `accumulate` the sums begin anew.
  template <class Ctx, class Memory>
  static NTKFAST_DEVICE void start_slice(const Ctx& ctx, Memory stage, bool accumulate,
                                         Sums& sums) {
    const auto a = stage + ctx.thread() / 128 * (64 * kSlice);
    const auto b = stage + kTile * kSlice;
    const Operand type{};
    ctx.start_products();
    if constexpr (Products::kSplit) {  // small terms first
      constexpr int kSmall = kSlice / 2;
      NTKFAST_UNROLL_DEVICE
      for (int s = 0; s < kSlice / 2; s += 32) {
        ctx.multiply_shared(type, sums, a + (kSmall + s), b + s, s > 0 || accumulate);
        ctx.multiply_shared(type, sums, a + s, b + (kSmall + s), true);
        ctx.multiply_shared(type, sums, a + s, b + s, true);
      }
    } else {
      NTKFAST_UNROLL_DEVICE
      for (int s = 0; s < kSlice; s += 32)
        ctx.multiply_shared(type, sums, a + s, b + s, s > 0 || accumulate);
    }
    ctx.commit_products();
  }

  static constexpr int kStages = 4;
  static constexpr int kSharedBytes = kStages * Base::kStageBytes;
  /// sums += products of rows [row0, row0 + kTile) of the left and [col0, col0 + kTile) of the right
  /// operand; rows from `rows` and `cols` on count as zero. Uses the first kSharedBytes of shared
  /// memory, free again when it returns. While a slice is multiplied, the one before it is too, and
  /// two are copied.
  template <class Ctx>
  static NTKFAST_DEVICE void add_products(const Ctx& ctx, const TensorOperand& left, int64_t row0,
                                          int64_t rows, const TensorOperand& right, int64_t col0,
                                          int64_t cols, Sums& sums) {
    constexpr int kCopied = kStages - 2;
    const int thread = ctx.thread();
    const auto memory = ctx.template shared<unsigned char>(0, kSharedBytes);
    const int slices = static_cast<int>(div_up(left.depth_bytes, kSlice));
    typename Base::LeftSource left_rows;
    typename Base::RightSource right_rows;
    left_rows.find(thread, left, nullptr, row0, rows);
    right_rows.find(thread, right, nullptr, col0, cols);
    const auto issue = [&](int slice) {
      if (slice < slices) {
        const auto stage = memory + slice % kStages * Base::kStageBytes;
        Base::copy_slice(ctx, left, left_rows, slice, stage);
        Base::copy_slice(ctx, right, right_rows, slice, stage + kTile * kSlice);
      }
      ctx.commit_copies();
    };
    NTKFAST_UNROLL_DEVICE
    for (int s = 0; s < kCopied; ++s) issue(s);
    Sums part;
    clear_sums(part);
    // Loops within a loop: the compiler waits for products wherever a branch touches their sums.
    NTKFAST_KEEP_LOOP
    for (int begin = 0; begin < slices; begin += Products::kSummedSlices) {
      const int left_over = slices - begin;
      const int count = left_over < Products::kSummedSlices ? left_over : Products::kSummedSlices;
      NTKFAST_KEEP_LOOP
      for (int i = 0; i < count; ++i) {
        const int slice = begin + i;
        ctx.template wait_copies<kCopied - 1>();
        ctx.publish_operands();
        ctx.barrier();
        start_slice(ctx, memory + slice % kStages * Base::kStageBytes, i > 0, part);
        ctx.template wait_groups<1>();  // of the stage that is copied to now
        issue(slice + kCopied);
      }
      ctx.wait_products(part);
      add_to_sums(sums, part);
    }
    ctx.template wait_copies<0>();
    ctx.barrier();
  }
};

}  // namespace
}  // namespace ntkfast
