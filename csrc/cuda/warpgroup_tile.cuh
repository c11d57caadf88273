// The matrix product on the tensor cores of compute capability 9.0: wgmma fed by bulk copies, a
// tile of 128 x 128 float32 sums in the registers of two warpgroups, or of other sizes. Both
// operands are read from shared memory; no thread loads fragments or computes addresses, and
// products go on while threads do something else. One thread more, the copier, keeps the slices
// coming.
//
// Operands are packed (operand_rows.cuh): the 128 rows of a tile in a slice of 128 bytes are 16 KB
// that lie together in global memory, as shared memory wants them.
#pragma once

#include "cuda/operand_rows.cuh"

namespace ntkfast {
namespace {

/// Slices in shared memory, and the barriers by which the copier and the warpgroups tell one
/// another which of them are full and which have been multiplied.
template <class Memory, class Barriers>
struct SliceRing {
  Memory memory;              // stages of kStageBytes
  Barriers full, multiplied;  // one of each per stage
  int stages;
  int stage, parity;  // where its owner is

  NTKFAST_DEVICE void advance() {
    if (++stage < stages) return;
    stage = 0;
    parity ^= 1;
  }
};

/// Some rows of a packed operand, from a multiple of 64 on, slice after slice: two pieces. Rows
/// behind the last packed ones are copies of others, whose sums are nobody's.
struct PackedPieces {
  const unsigned char* place[2];
  int bytes[2];

  /// From this slice on.
  NTKFAST_DEVICE void find(const OperandRows& from, int64_t row0, int rows, int64_t slice) {
    const int64_t last = from.padded_rows() / kTensorTile - 1, tile = row0 / kTensorTile;
    const int skipped = static_cast<int>(row0 % kTensorTile);
    const int first = rows < kTensorTile - skipped ? rows : kTensorTile - skipped;
    bytes[0] = first * kSliceBytes;
    bytes[1] = (rows - first) * kSliceBytes;
    const unsigned char* const data = from.data + slice * kPackedBytes;
    place[0] = data + tile * from.slices * kPackedBytes + skipped * kSliceBytes;
    place[1] = data + (tile < last ? tile + 1 : last) * from.slices * kPackedBytes;
  }
};

/// `Groups` warpgroups, each of which holds the sums of 64 rows and `Columns` columns: 128, 64 for
/// half a tile of the right operand, or 256.
template <class Products, int Columns = kTensorTile, int Groups = 2>
struct WarpgroupTile {
  using Operand = typename Products::Operand;
  static constexpr int kTile = kTensorTile, kTileRows = 64 * Groups, kColumns = Columns;
  static constexpr int kSlice = kSliceBytes;
  static constexpr int kLeftBytes = kTileRows * kSliceBytes, kRightBytes = kColumns * kSliceBytes;
  static constexpr int kStageBytes = kLeftBytes + kRightBytes;
  /// Registers are taken and given back by warpgroups: the copier is a thread of one more.
  static constexpr int kMultipliers = 128 * Groups, kThreads = kMultipliers + 128;
  static constexpr int kMultiplierRegisters = Groups == 2 ? 240 : 160;
  static constexpr int kCopierRegisters = Groups == 2 ? 24 : 32;
  static_assert(kMultipliers * kMultiplierRegisters + 128 * kCopierRegisters <= 65536, "");
  /// Where the registers a thread begins with do not hold the sums of one instruction.
  static constexpr bool kHalves = Groups == 3 && kColumns == 256;
  static constexpr int kWarps = kMultipliers / 32;
  static_assert(sizeof(typename Products::Element) == 2, "wgmma cuts float32 off to tf32");
  static constexpr int kRows = 2, kPairs = kColumns / 8, kRowStep = 8, kColStep = 8;
  /// sums[r][n]: row 8 r, columns 8 n, + 1 of what row() and col() say.
  using Sums = Pair<float>[kRows][kPairs];
  static NTKFAST_DEVICE int row(int thread) { return 16 * (thread / 32) + thread % 32 / 4; }
  static NTKFAST_DEVICE int col(int thread) { return 2 * (thread % 4); }

  /// Of `stages` stages at the start of shared memory, with the barriers at this byte.
  template <class Ctx>
  static NTKFAST_DEVICE auto ring(const Ctx& ctx, int stages, int barriers_at) {
    const auto memory = ctx.template shared<unsigned char>(0, stages * kStageBytes);
    const auto barriers = ctx.template shared<uint64_t>(barriers_at, 2 * stages);
    return SliceRing<decltype(memory + 0), decltype(barriers + 0)>{
        memory, barriers, barriers + stages, stages, 0, 0};
  }
  /// By one thread, before the block's first barrier.
  template <class Ctx, class Ring>
  static NTKFAST_DEVICE void open(const Ctx& ctx, const Ring& ring) {
    for (int s = 0; s < ring.stages; ++s) {
      ctx.open_barrier(ring.full + s, 1);
      ctx.open_barrier(ring.multiplied + s, kWarps);
    }
  }
  /// By the copier: the next slice, of one tile of each operand, or half a tile of the right one.
  template <class Ctx, class Ring>
  static NTKFAST_DEVICE void copy(const Ctx& ctx, Ring& ring, const unsigned char* left,
                                  const unsigned char* right) {
    ctx.wait_barrier(ring.multiplied + ring.stage, ring.parity ^ 1);
    const auto full = ring.full + ring.stage;
    const auto to = ring.memory + ring.stage * kStageBytes;
    ctx.expect_bytes(full, kStageBytes);
    ctx.copy_bulk(to, left, kPackedBytes, full);
    ctx.copy_bulk(to + kPackedBytes, right, kRightBytes, full);
    ring.advance();
  }
  /// The same of tiles in pieces, which move on to the slice after it.
  template <class Ctx, class Ring>
  static NTKFAST_DEVICE void copy(const Ctx& ctx, Ring& ring, PackedPieces& left,
                                  PackedPieces& right) {
    ctx.wait_barrier(ring.multiplied + ring.stage, ring.parity ^ 1);
    const auto full = ring.full + ring.stage;
    const auto to = ring.memory + ring.stage * kStageBytes;
    ctx.expect_bytes(full, kStageBytes);
    const auto copy_pieces = [&](PackedPieces& from, int at) {
      NTKFAST_UNROLL_DEVICE
      for (int i = 0; i < 2; ++i) {
        if (from.bytes[i] > 0) ctx.copy_bulk(to + at, from.place[i], from.bytes[i], full);
        at += from.bytes[i];
        from.place[i] += kPackedBytes;
      }
    };
    copy_pieces(left, 0);
    copy_pieces(right, kLeftBytes);
    ring.advance();
  }

  /// Starts sums += A B^T over the next slice once it is there; without `accumulate` the sums begin
  /// anew. Then the slice before it has been multiplied: the copier learns of it, but for the
  /// first.
  template <class Ctx, class Ring>
  static NTKFAST_DEVICE void multiply(const Ctx& ctx, Ring& ring, bool accumulate, bool first,
                                      Sums& sums) {
    ctx.wait_barrier(ring.full + ring.stage, ring.parity);
    const auto stage = ring.memory + ring.stage * kStageBytes;
    const auto a = ctx.operand(stage + ctx.thread() / 128 * (64 * kSlice));
    const auto b = ctx.operand(stage + kLeftBytes);
    const Operand type{};
    ctx.start_products();
    if constexpr (Products::kSplit) {  // small terms first
      constexpr int kSmall = kSlice / 2;
      NTKFAST_UNROLL_DEVICE
      for (int s = 0; s < kSlice / 2; s += 32) {
        ctx.multiply_shared(type, sums, ctx.moved(a, kSmall + s), ctx.moved(b, s),
                            s > 0 || accumulate);
        ctx.multiply_shared(type, sums, ctx.moved(a, s), ctx.moved(b, kSmall + s), true);
        ctx.multiply_shared(type, sums, ctx.moved(a, s), ctx.moved(b, s), true);
      }
    } else {
      NTKFAST_UNROLL_DEVICE
      for (int s = 0; s < kSlice; s += 32) {
        if constexpr (kHalves) {
          const bool add = s > 0 || accumulate;
          const auto left = ctx.moved(a, s), right = ctx.moved(b, s);
          ctx.template multiply_half<0>(type, sums, left, right, add);
          ctx.template multiply_half<1>(type, sums, left, ctx.moved(right, 128 * kSlice), add);
        } else {
          ctx.multiply_shared(type, sums, ctx.moved(a, s), ctx.moved(b, s), s > 0 || accumulate);
        }
      }
    }
    ctx.commit_products();
    ctx.template wait_groups<1>();
    const int before = ring.stage > 0 ? ring.stage - 1 : ring.stages - 1;
    if (!first && ctx.thread() % 32 == 0) ctx.arrive(ring.multiplied + before);
    ring.advance();
  }
};

}  // namespace
}  // namespace ntkfast
