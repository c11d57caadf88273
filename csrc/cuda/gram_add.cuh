// out += A B^T, one block per tile of out.
#pragma once

#include "cuda/gram_tile.cuh"
#include "cuda/operand_rows.cuh"
#include "cuda/warpgroup_tile.cuh"

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

/// out += the sums of this thread, whose first one is at this row and column.
template <class Tile, class T, class Sums>
NTKFAST_DEVICE void add_to_out(const GramAddArgs<T>& args, int64_t row, int64_t col,
                               const Sums& sums) {
  NTKFAST_UNROLL_DEVICE
  for (int i = 0; i < Tile::kRows; ++i) {
    const int64_t r = row + Tile::kRowStep * i;
    if (r >= args.rows) continue;
    NTKFAST_UNROLL_DEVICE
    for (int j = 0; j < Tile::kPairs; ++j) {
      NTKFAST_UNROLL_DEVICE
      for (int lane = 0; lane < 2; ++lane) {
        const int64_t c = col + Tile::kColStep * j + lane;
        if (c >= args.cols) continue;
        T value = sums[i][j].v[lane];
        if (args.left_scale) value = value * args.right_scale[c] * args.left_scale[r];
        args.out[r * args.out_stride + c] += value;
      }
    }
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
    add_to_out<Products>(args, row0 + Products::row(ctx.thread()),
                         col0 + Products::col(ctx.thread()), total);
  }
};

struct GramWarpgroupArgs {
  GramAddArgs<float> gram;  // its operands play no part
  OperandRows left, right;  // packed
};

template <class Products>
struct GramAddWarpgroup {
  using Tile = WarpgroupTile<Products>;
  static constexpr int kThreads = Tile::kThreads;
  static constexpr int kTile = Tile::kTile, kStages = 6;
  static constexpr int kBarriersAt = kStages * Tile::kStageBytes;
  static constexpr int kSharedBytes = kBarriersAt + 2 * kStages * int{sizeof(uint64_t)};

  template <class Ctx>
  static NTKFAST_DEVICE void body(const Ctx& ctx, const GramWarpgroupArgs& args) {
    if constexpr (!kByWarpgroups) return;
    const TilePlace place = place_in_panels(ctx.block_x(), div_up(args.gram.rows, kTile),
                                            div_up(args.gram.cols, kTile));
    const int64_t row0 = place.row * kTile, col0 = place.col * kTile;
    if (args.gram.lower && col0 >= row0 + kTile) return;  // the whole block
    auto ring = Tile::ring(ctx, kStages, kBarriersAt);
    if (ctx.thread() == 0) Tile::open(ctx, ring);
    ctx.barrier();
    const int slices = static_cast<int>(args.left.slices);
    if (ctx.thread() < Tile::kMultipliers) {
      ctx.template take_registers<Tile::kMultiplierRegisters>();
      typename Tile::Sums sums, part;
      clear_sums(sums);
      clear_sums(part);
      // Loops within a loop: the compiler waits for products wherever a branch touches their sums.
      NTKFAST_KEEP_LOOP
      for (int begin = 0; begin < slices; begin += Products::kSummedSlices) {
        const int left = slices - begin;
        const int count = left < Products::kSummedSlices ? left : Products::kSummedSlices;
        NTKFAST_KEEP_LOOP
        for (int i = 0; i < count; ++i) Tile::multiply(ctx, ring, i > 0, begin + i == 0, part);
        ctx.wait_products(part);
        add_to_sums(sums, part);
      }
      add_to_out<Tile>(args.gram, row0 + Tile::row(ctx.thread()), col0 + Tile::col(ctx.thread()),
                       sums);
    } else {
      ctx.template keep_registers<Tile::kCopierRegisters>();
      if (ctx.thread() > Tile::kMultipliers) return;
      const unsigned char* left = args.left.data + place.row * slices * kPackedBytes;
      const unsigned char* right = args.right.data + place.col * slices * kPackedBytes;
      for (int slice = 0; slice < slices; ++slice) {
        Tile::copy(ctx, ring, left, right);
        left += kPackedBytes;
        right += kPackedBytes;
      }
    }
  }
};

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
    const int64_t per_number = (rows + (same ? 0 : cols)) * (kSliceBytes / kSliceNumbers<Products>);
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
    const bool packed =
        launcher.template multiplies_by_warpgroup<GramAddWarpgroup<Products>, GramWarpgroupArgs>();
    if (!packed && !kRound) {  // as they are
      args.left = tensor_operand(factors.left, factors.left_stride, depth_);
      args.right = tensor_operand(factors.right, factors.right_stride, depth_);
      return launch_gram_add<TensorProducts<Products>>(launcher, args);
    }
    for (int64_t begin = 0; begin < depth_; begin += stretch_) {
      const int64_t depth = depth_ - begin < stretch_ ? depth_ - begin : stretch_;
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
      if (packed) {
        using Kernel = GramAddWarpgroup<Products>;
        launcher.template run<Kernel>(
            {div_up(args.rows, Kernel::kTile) * div_up(args.cols, Kernel::kTile), 1},
            Kernel::kSharedBytes, GramWarpgroupArgs{args, left, right});
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
