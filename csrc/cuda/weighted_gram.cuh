// G = sum_x v_x psi_x psi_x^T, products and sums in double on tensor cores.
#pragma once

#include "cuda/double_tile.cuh"

namespace ntkfast {
namespace {

/// Blocks wanted, where there are enough points: three on each of the 132 multiprocessors of an
/// H100. Fixed, so that the order of every sum is too, and the most there are where points are
/// shared out, so that the sums of the shares take 50 MB.
constexpr int64_t kGramBlocks = 396;
/// Points that are worth a share.
constexpr int64_t kGramShare = 1024;

template <class S>
struct WeightedGramArgs {
  const S* X;  // (points, cols)
  int64_t row_stride, points, cols;
  const double* weights;
  double* G;  // (cols, cols)
  int64_t G_stride;
  // Set by the driver:
  double* shares;  // [share][tile][128][128]; null with one share
  int64_t tiles, share_points, num_shares;
};

/// Cuts a call up; cols > 0.
inline void plan_weighted_gram(int64_t points, int64_t cols, int64_t wanted_blocks, int64_t* tiles,
                               int64_t* share_points, int64_t* num_shares) {
  const int64_t side = div_up(cols, kDoubleSize), most = div_up(points, kGramShare);
  *tiles = side * (side + 1) / 2;
  int64_t shares = wanted_blocks / *tiles;
  shares = shares < most ? shares : most;
  shares = shares > 1 ? shares : 1;
  *share_points = round_to(div_up(points, shares), kDoubleDepth);
  *num_shares = points > 0 ? div_up(points, *share_points) : 1;
}

/// One block per share of the points and tile of the lower part.
template <class S>
struct WeightedGram {
  static constexpr int kThreads = kDoubleThreads;
  template <class Ctx>
  static NTKFAST_DEVICE void body(const Ctx& ctx, const WeightedGramArgs<S>& args) {
    const int64_t share = ctx.block_x() / args.tiles;
    int64_t i = 0, j = ctx.block_x() % args.tiles;
    for (; j > i; ++i) j -= i + 1;
    const int64_t row0 = i * kDoubleSize, col0 = j * kDoubleSize;
    const int64_t first = share * args.share_points, stop = first + args.share_points;
    DoubleTile tile;
    tile.clear();
    multiply_doubles(ctx, first, stop < args.points ? stop : args.points,
                     SideBySide<S>{args.X, args.row_stride, args.weights}, row0, args.cols,
                     SideBySide<S>{args.X, args.row_stride}, col0, args.cols, tile);
    NTKFAST_UNROLL_DEVICE
    for (int m = 0; m < 4; ++m) {
      NTKFAST_UNROLL_DEVICE
      for (int n = 0; n < 4; ++n) {
        NTKFAST_UNROLL_DEVICE
        for (int e = 0; e < 4; ++e) {
          const int r = DoubleTile::row(ctx.thread(), m, e),
                    c = DoubleTile::col(ctx.thread(), n, e);
          const double value = tile.value[m][n][e];
          if (args.shares) {
            args.shares[(ctx.block_x() * kDoubleSize + r) * kDoubleSize + c] = value;
          } else if (row0 + r < args.cols && col0 + c <= row0 + r) {
            args.G[(row0 + r) * args.G_stride + col0 + c] = value;
            args.G[(col0 + c) * args.G_stride + row0 + r] = value;
          }
        }
      }
    }
  }
};

/// G = the sum of the shares, in order; one thread per number of the lower part.
template <class S>
struct SumShares {
  static constexpr int kThreads = 256;
  template <class Ctx>
  static NTKFAST_DEVICE void body(const Ctx& ctx, const WeightedGramArgs<S>& args) {
    const int64_t e = ctx.block_x() * kThreads + ctx.thread();
    const int64_t r = e / args.cols, c = e % args.cols;
    if (r >= args.cols || c > r) return;
    const int64_t i = r / kDoubleSize, tile = i * (i + 1) / 2 + c / kDoubleSize;
    const double* from =
        args.shares + (tile * kDoubleSize + r % kDoubleSize) * kDoubleSize + c % kDoubleSize;
    double sum = 0;
    for (int64_t share = 0; share < args.num_shares; ++share)
      sum += from[share * args.tiles * kDoubleSize * kDoubleSize];
    args.G[r * args.G_stride + c] = sum;
    args.G[c * args.G_stride + r] = sum;
  }
};

/// Bytes of workspace.
inline int64_t weighted_gram_workspace(int64_t points, int64_t cols,
                                       int64_t wanted_blocks = kGramBlocks) {
  if (cols == 0) return 0;
  int64_t tiles, share_points, num_shares;
  plan_weighted_gram(points, cols, wanted_blocks, &tiles, &share_points, &num_shares);
  return num_shares > 1 ? num_shares * tiles * kDoubleSize * kDoubleSize * int64_t{sizeof(double)}
                        : 0;
}

/// The whole call; `workspace` has weighted_gram_workspace(...) bytes.
template <class Launcher, class S>
void launch_weighted_gram(Launcher& launcher, WeightedGramArgs<S> args, void* workspace,
                          int64_t wanted_blocks = kGramBlocks) {
  if (args.cols == 0) return;
  plan_weighted_gram(args.points, args.cols, wanted_blocks, &args.tiles, &args.share_points,
                     &args.num_shares);
  args.shares = args.num_shares > 1 ? static_cast<double*>(workspace) : nullptr;
  launcher.template run<WeightedGram<S>>({args.tiles * args.num_shares, 1}, kDoubleTileBytes, args);
  if (args.shares)
    launcher.template run<SumShares<S>>({div_up(args.cols * args.cols, SumShares<S>::kThreads), 1},
                                        0, args);
}

}  // namespace
}  // namespace ntkfast
