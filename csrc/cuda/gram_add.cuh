// out += A B^T, one block per tile of out.
#pragma once

#include "cuda/gram_tile.cuh"

namespace ntkfast {
namespace {

template <class T>
struct GramAddArgs {
  TensorOperand left, right;                // (rows, depth), (cols, depth)
  const float *left_scale, *right_scale;  // what products of each row are multiplied by; null: one
  int64_t rows, cols;
  T* out;
  int64_t out_stride;
  bool lower;  // only tiles that meet the lower triangle
};

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
    const int64_t row = row0 + Products::row(ctx.thread());
    const int64_t col = col0 + Products::col(ctx.thread());
    NTKFAST_UNROLL_DEVICE
    for (int i = 0; i < Products::kRows; ++i) {
      const int64_t r = row + Products::kRowStep * i;
      if (r >= args.rows) continue;
      NTKFAST_UNROLL_DEVICE
      for (int j = 0; j < Products::kPairs; ++j) {
        NTKFAST_UNROLL_DEVICE
        for (int lane = 0; lane < 2; ++lane) {
          const int64_t c = col + Products::kColStep * j + lane;
          if (c >= args.cols) continue;
          T value = total[i][j].v[lane];
          if (args.left_scale) value = value * args.right_scale[c] * args.left_scale[r];
          args.out[r * args.out_stride + c] += value;
        }
      }
    }
  }
};

template <class Products, class Launcher>
void launch_gram_tiles(Launcher& launcher, const GramAddArgs<typename Products::T>& args) {
  constexpr int kTile = Products::kTile;
  launcher.template run<GramAdd<Products>>({div_up(args.rows, kTile) * div_up(args.cols, kTile), 1},
                                           Products::kSharedBytes, args);
}

/// The depth must not be zero. Products are PlainProducts, or those of tensor_tile.cuh.
template <class Products, class Launcher, class T>
void launch_gram_add(Launcher& launcher, const GramAddArgs<T>& args) {
  if constexpr (std::is_same<Products, PlainProducts<T>>::value) {
    launch_gram_tiles<Products>(launcher, args);
  } else {
    if constexpr (sizeof(typename Products::Element) == 2) {
      using Warpgroups = WarpgroupProducts<Products>;
      if (launcher.template multiplies_by_warpgroup<GramAdd<Warpgroups>, GramAddArgs<T>>())
        return launch_gram_tiles<Warpgroups>(launcher, args);
    }
    launch_gram_tiles<TensorProducts<Products>>(launcher, args);
  }
}

/// out += A B^T of float32 numbers as float16 numbers, a stretch of the depth after the other.
template <class Products>
class SplitGram {
 public:
  static constexpr bool kTwo = Products::kSplit;
  /// Bytes of split rows that are wanted at once.
  static constexpr int64_t kWantedBytes = int64_t{256} << 20;

  /// `same`: the rows of both operands.
  SplitGram(int64_t rows, int64_t cols, int64_t depth, bool same, int64_t wanted = kWantedBytes)
      : depth_(depth), same_(same) {
    constexpr int64_t kLeast = 1024;
    const int64_t per_number = (rows + (same ? 0 : cols)) * (kTwo ? 4 : 2);
    const int64_t most = wanted / (per_number > 0 ? per_number : 1) / kLeast * kLeast;
    stretch_ = most < kLeast ? kLeast : most;
    if (stretch_ > depth) stretch_ = depth;
    left_ = split_operand(rows, stretch_, kTwo);
    right_ = split_operand(same ? 0 : cols, stretch_, kTwo);
  }
  int64_t bytes() const { return left_.bytes() + right_.bytes(); }

  /// `args` without its operands; memory aligned to 256 bytes.
  template <class Launcher>
  void launch(Launcher& launcher, const float* A, int64_t A_stride, const float* B,
              int64_t B_stride, void* memory, GramAddArgs<float> args) const {
    for (int64_t begin = 0; begin < depth_; begin += stretch_) {
      const int64_t depth = depth_ - begin < stretch_ ? depth_ - begin : stretch_;
      SplitOperand left = split_operand(left_.rows, depth, kTwo).at(memory), right = left;
      launch_split_rows<kTwo>(launcher, A + begin, A_stride, depth, nullptr, left);
      if (!same_) {
        right = split_operand(right_.rows, depth, kTwo)
                    .at(static_cast<unsigned char*>(memory) + left_.bytes());
        launch_split_rows<kTwo>(launcher, B + begin, B_stride, depth, nullptr, right);
      }
      args.left = left.operand();
      args.right = right.operand();
      args.left_scale = left.scale;
      args.right_scale = right.scale;
      launch_gram_add<Products>(launcher, args);
    }
  }

 private:
  int64_t depth_, stretch_;
  bool same_;
  SplitOperand left_, right_;
};

}  // namespace
}  // namespace ntkfast
