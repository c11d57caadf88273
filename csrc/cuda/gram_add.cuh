// out += A B^T, one block per tile of out.
#pragma once

#include "cuda/gram_tile.cuh"

namespace ntkfast {
namespace {

template <class T>
struct GramAddArgs {
  TensorOperand left, right;  // (rows, depth), (cols, depth)
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
          if (c < args.cols) args.out[r * args.out_stride + c] += total[i][j].v[lane];
        }
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

}  // namespace
}  // namespace ntkfast
