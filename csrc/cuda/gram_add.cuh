// out += A B^T, one block per tile of out.
#pragma once

#include "cuda/gram_tile.cuh"
#include "cuda/operand_rows.cuh"
#include "cuda/warpgroup_tile.cuh"

/// Warpgroups of a wide tile: two, or three, which read less.
#if !defined(NTKFAST_GRAM_WARPGROUPS)
#define NTKFAST_GRAM_WARPGROUPS 3
#endif

namespace ntkfast {
namespace {

template <class T>
struct GramAddArgs {
  TensorOperand left, right;              // (rows, depth), (cols, depth)
  const float *left_scale, *right_scale;  // what products of each row are multiplied by; null: one
  int64_t rows, cols;
  T* out;
  int64_t out_stride;
  bool lower;  // only tiles that meet the lower triangle
};

/// A number and its neighbour; zero from `left` on. `kWhole`: both are there, at an even place.
template <bool kWhole, class T>
NTKFAST_DEVICE Pair<T> read_pair(const T* from, int left) {
  if constexpr (kWhole) return load_pair(from);
  Pair<T> pair(T(0));
  NTKFAST_UNROLL_DEVICE
  for (int lane = 0; lane < 2; ++lane)
    if (lane < left) pair.v[lane] = from[lane];
  return pair;
}

/// out += the sums of this thread, whose first one is at this row and column. Several numbers of
/// out are read before any is written, which waits for memory once for all of them.
template <bool kWhole, bool kScaled, class Tile, class T, class Sums>
NTKFAST_DEVICE void add_pairs_to_out(const GramAddArgs<T>& args, int64_t row, int64_t col, int left,
                                     const Sums& sums) {
  constexpr int kAtOnce = Tile::kPairs < 4 ? Tile::kPairs : 4;
  static_assert(Tile::kPairs % kAtOnce == 0, "");
  NTKFAST_UNROLL_DEVICE
  for (int i = 0; i < Tile::kRows; ++i) {
    const int64_t r = row + Tile::kRowStep * i;
    if (r >= args.rows) continue;
    T* const out = args.out + r * args.out_stride + col;
    NTKFAST_UNROLL_DEVICE
    for (int first = 0; first < Tile::kPairs; first += kAtOnce) {
      Pair<T> value[kAtOnce];
      NTKFAST_UNROLL_DEVICE
      for (int j = 0; j < kAtOnce; ++j) {
        const int at = Tile::kColStep * (first + j);
        Pair<T> term = sums[i][first + j];
        if constexpr (kScaled) {
          const auto scale = read_pair<kWhole>(args.right_scale + col + at, left - at);
          NTKFAST_UNROLL_DEVICE
          for (int lane = 0; lane < 2; ++lane)
            term.v[lane] = unscaled(term.v[lane], args.left_scale[r], scale.v[lane]);
        }
        value[j] = read_pair<kWhole>(out + at, left - at) + term;
      }
      NTKFAST_UNROLL_DEVICE
      for (int j = 0; j < kAtOnce; ++j) {
        const int at = Tile::kColStep * (first + j);
        if constexpr (kWhole) {
          *reinterpret_cast<Pair<T>*>(out + at) = value[j];
        } else {
          NTKFAST_UNROLL_DEVICE
          for (int lane = 0; lane < 2; ++lane)
            if (at + lane < left) out[at + lane] = value[j].v[lane];
        }
      }
    }
  }
}
/// `kScaled`: there are scales.
template <bool kScaled, class Tile, class T, class Sums>
NTKFAST_DEVICE void add_to_out(const GramAddArgs<T>& args, int64_t row, int64_t col,
                               const Sums& sums) {
  constexpr int kEnd = Tile::kColStep * (Tile::kPairs - 1) + 2;  // of this thread's columns
  const int left = args.cols - col < kEnd ? static_cast<int>(args.cols - col) : kEnd;
  const bool even =
      args.out_stride % 2 == 0 && reinterpret_cast<uintptr_t>(args.out) % sizeof(Pair<T>) == 0;
  if (even && left == kEnd) {
    add_pairs_to_out<true, kScaled, Tile>(args, row, col, left, sums);
  } else {
    add_pairs_to_out<false, kScaled, Tile>(args, row, col, left, sums);
  }
}

template <class Products>
struct GramAdd {
  using T = typename Products::T;
  static constexpr int kThreads = Products::kThreads;

  template <class Ctx>
  static NTKFAST_DEVICE void body(const Ctx& ctx, const GramAddArgs<T>& args) {
    if constexpr (!Products::kRunsHere) return;
    constexpr int kTile = Products::kTile;
    const TilePlace place =
        place_in_panels(ctx.block_x(), div_up(args.rows, kTile), div_up(args.cols, kTile));
    const int64_t row0 = place.row * kTile, col0 = place.col * kTile;
    if (args.lower && col0 >= row0 + kTile) return;  // the whole block
    typename Products::Sums total;
    clear_sums(total);
    Products::add_products(ctx, args.left, row0, args.rows, args.right, col0, args.cols, total);
    constexpr bool kScaled = std::is_same<typename Products::Element, Float16>::value;
    add_to_out<kScaled, Products>(args, row0 + Products::row(ctx.thread()),
                                  col0 + Products::col(ctx.thread()), total);
  }
};

struct GramWarpgroupArgs {
  GramAddArgs<float> gram;  // its operands play no part
  OperandRows left, right;  // packed
};

/// Warpgroups multiply faster than the second-level cache delivers. A wide tile reads less for a
/// product: 192 x 256 instead of 128 x 128 numbers 0.58 times as much, 192 x 128 numbers, where
/// sums begin anew every few slices and so take twice the registers, 0.83 times.
///
/// Sums of 192 x 256 tiles are one chain, of at most kLongestChain numbers of the depth. What
/// tensor cores cut off is then 3e-5 of a sum of products without signs: far less than rounding to
/// 8 or 11 bits may change each of them.
template <class Products, bool kWide = false>
struct GramAddWarpgroup {
  static constexpr bool kOneChain = kWide && !Products::kSplit;
  static constexpr int64_t kLongestChain = 16384;
  using Tile =
      std::conditional_t<kWide,
                         WarpgroupTile<Products, kOneChain ? 256 : 128, NTKFAST_GRAM_WARPGROUPS>,
                         WarpgroupTile<Products>>;
  static constexpr int kThreads = Tile::kThreads;
  static constexpr int kRows = Tile::kTileRows, kColumns = Tile::kColumns;
  static constexpr int kStages = 226 * 1024 / Tile::kStageBytes;
  static constexpr int kBarriersAt = kStages * Tile::kStageBytes;
  static constexpr int kSharedBytes = kBarriersAt + 2 * kStages * int{sizeof(uint64_t)};

  template <class Ctx>
  static NTKFAST_DEVICE void body(const Ctx& ctx, const GramWarpgroupArgs& args) {
    if constexpr (!kByWarpgroups) return;
    const TilePlace place = place_in_panels(ctx.block_x(), div_up(args.gram.rows, kRows),
                                            div_up(args.gram.cols, kColumns));
    const int64_t row0 = place.row * kRows, col0 = place.col * kColumns;
    if (args.gram.lower && col0 >= row0 + kRows) return;  // the whole block
    auto ring = Tile::ring(ctx, kStages, kBarriersAt);
    if (ctx.thread() == 0) Tile::open(ctx, ring);
    ctx.barrier();
    const int slices = static_cast<int>(args.left.slices);
    if (ctx.thread() < Tile::kMultipliers) {
      ctx.template take_registers<Tile::kMultiplierRegisters>();
      typename Tile::Sums sums;
      clear_sums(sums);
      if constexpr (kOneChain) {
        NTKFAST_KEEP_LOOP
        for (int i = 0; i < slices; ++i) Tile::multiply(ctx, ring, i > 0, i == 0, sums);
        ctx.wait_products(sums);
      } else {
        typename Tile::Sums part;
        clear_sums(part);
        // Loops within a loop: the compiler waits for products wherever a branch touches their
        // sums.
        NTKFAST_KEEP_LOOP
        for (int begin = 0; begin < slices; begin += Products::kSummedSlices) {
          const int left = slices - begin;
          const int count = left < Products::kSummedSlices ? left : Products::kSummedSlices;
          NTKFAST_KEEP_LOOP
          for (int i = 0; i < count; ++i) Tile::multiply(ctx, ring, i > 0, begin + i == 0, part);
          ctx.wait_products(part);
          add_to_sums(sums, part);
        }
      }
      constexpr bool kScaled = std::is_same<typename Products::Element, Float16>::value;
      add_to_out<kScaled, Tile>(args.gram, row0 + Tile::row(ctx.thread()),
                                col0 + Tile::col(ctx.thread()), sums);
    } else {
      ctx.template keep_registers<Tile::kCopierRegisters>();
      if (ctx.thread() > Tile::kMultipliers) return;
      PackedPieces left, right;
      left.find(args.left, row0, kRows);
      right.find(args.right, col0, kColumns);
      for (int slice = 0; slice < slices; ++slice) Tile::copy(ctx, ring, left, right);
    }
  }

  /// Tiles that there is something to do for.
  static int64_t tiles(const GramAddArgs<float>& args) {
    int64_t count = 0;
    for (int64_t end = kRows; end < args.rows + kRows; end += kRows)
      count += div_up(args.lower && end < args.cols ? end : args.cols, kColumns);
    return count;
  }
  /// What the multiprocessor reads, per slice, that has most to do.
  static int64_t most_bytes(const GramAddArgs<float>& args, int multiprocessors) {
    return div_up(tiles(args), multiprocessors) * Tile::kStageBytes;
  }
};

template <class Kernel, class Launcher>
void launch_gram_warpgroup(Launcher& launcher, const GramWarpgroupArgs& args) {
  launcher.template run<Kernel>(
      {div_up(args.gram.rows, Kernel::kRows) * div_up(args.gram.cols, Kernel::kColumns), 1},
      Kernel::kSharedBytes, args);
}

/// The depth must not be zero.
template <class Products, class Launcher>
void launch_gram_add(Launcher& launcher, const GramAddArgs<typename Products::T>& args) {
  constexpr int kTile = Products::kTile;
  launcher.template run<GramAdd<Products>>({div_up(args.rows, kTile) * div_up(args.cols, kTile), 1},
                                           Products::kSharedBytes, args);
}

/// Two matrices whose rows are multiplied.
template <class Element>
struct GramFactors {
  const Element *left, *right;
  int64_t left_stride, right_stride;
};

/// out += A B^T of 16-bit numbers, a stretch of the depth after the other.
template <class Products>
class GramOfRows {
 public:
  /// Bytes of rows that are wanted at once.
  static constexpr int64_t kWantedBytes = int64_t{256} << 20;

  /// `same`: the rows of both matrices.
  GramOfRows(int64_t rows, int64_t cols, int64_t depth, bool same, int64_t wanted = kWantedBytes)
      : depth_(depth), same_(same) {
    constexpr int64_t kLeast = 1024;
    const int64_t padded = round_to(rows, kTensorTile) + (same ? 0 : round_to(cols, kTensorTile));
    const int64_t per_number = padded * (kSliceBytes / kSliceNumbers<Products>);
    const int64_t most = wanted / (per_number > 0 ? per_number : 1) / kLeast * kLeast;
    stretch_ = most < kLeast ? kLeast : most;
    if (stretch_ > depth) stretch_ = depth;
    left_ = operand_rows<Products>(rows, stretch_);
    right_ = operand_rows<Products>(same ? 0 : cols, stretch_);
  }
  int64_t bytes() const { return left_.bytes() + right_.bytes(); }

  /// `args` without its operands; memory aligned to 256 bytes.
  template <class Launcher>
  void launch(Launcher& launcher, const GramFactors<SourceElement<Products>>& factors, void* memory,
              GramAddArgs<float> args) const {
    constexpr bool kRound = std::is_same<SourceElement<Products>, float>::value;
    using Narrow = GramAddWarpgroup<Products>;
    using Wide = GramAddWarpgroup<Products, true>;
    const bool packed = launcher.template multiplies_by_warpgroup<Narrow, GramWarpgroupArgs>();
    const bool wide = packed && Wide::most_bytes(args, launcher.multiprocessors()) <
                                    Narrow::most_bytes(args, launcher.multiprocessors());
    const int64_t stretch =
        wide && Wide::kOneChain && stretch_ > Wide::kLongestChain ? Wide::kLongestChain : stretch_;
    if (!packed && !kRound) {  // as they are
      args.left = tensor_operand(factors.left, factors.left_stride, depth_);
      args.right = tensor_operand(factors.right, factors.right_stride, depth_);
      return launch_gram_add<TensorProducts<Products>>(launcher, args);
    }
    for (int64_t begin = 0; begin < depth_; begin += stretch) {
      const int64_t depth = depth_ - begin < stretch ? depth_ - begin : stretch;
      const OperandRows left = operand_rows<Products>(left_.rows, depth).at(memory);
      OperandRows right = left;
      launch_fill_rows<Products>(launcher, factors.left + begin, factors.left_stride, depth,
                                 nullptr, left, packed);
      if (!same_) {
        right = operand_rows<Products>(right_.rows, depth)
                    .at(static_cast<unsigned char*>(memory) + left_.bytes());
        launch_fill_rows<Products>(launcher, factors.right + begin, factors.right_stride, depth,
                                   nullptr, right, packed);
      }
      if (kRound) {
        args.left_scale = left.scale;
        args.right_scale = right.scale;
      }
      if (packed && wide) {
        launch_gram_warpgroup<Wide>(launcher, {args, left, right});
      } else if (packed) {
        launch_gram_warpgroup<Narrow>(launcher, {args, left, right});
      } else {
        args.left = left.operand();
        args.right = right.operand();
        launch_gram_add<TensorProducts<Products>>(launcher, args);
      }
    }
  }

 private:
  int64_t depth_, stretch_;
  bool same_;
  OperandRows left_, right_;
};

}  // namespace
}  // namespace ntkfast
