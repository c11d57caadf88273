// variance_reduction in weight space without pairs (docs/method.md, section 4): the
// downdate of all moments after a pick, and the whole sequential selection without a round trip to
// the host.
#pragma once

#include "cuda/row_products.cuh"

namespace ntkfast {
namespace {

constexpr int kMomentThreads = 256;
constexpr int kMomentRowsPerBlock = kMomentThreads / 32 * kWarpRows;
/// Columns of g and h in shared memory at a time.
constexpr int kMomentColumns = 2048;

template <class S>
struct MomentArgs {
  const S* psi;
  int64_t row_stride, cols;
  const int64_t* index;  // rows of psi that count, or nullptr: all
  int64_t rows;
  const double *g, *h;    // (cols,)
  const double* scalars;  // {g^T G g, D}, or nullptr: {0, 1}
  double *q, *s;          // (rows,), updated
  const double* noise;    // (rows,), selection only
  double* best_value;     // per block, selection only (else nullptr)
  int64_t* best_row;
};

/// Whether (value, row) is a better pick than (best, best_row): larger, ties to the lowest row, NaN
/// never.
NTKFAST_HD inline bool better_pick(double value, int64_t row, double best, int64_t best_row) {
  return value > best || (value == best && row < best_row);
}

/// With alpha_x = <psi_x, g>: q_x -= 2 alpha_x <psi_x, h> / D - alpha_x^2 gGg / D^2, s_x -=
/// alpha_x^2 / D, in one pass over psi, products and sums in double; then, for a selection, the
/// best of this block's rows.
template <class S>
struct DowndateMoments {
  static constexpr int kThreads = kMomentThreads;
  static NTKFAST_HD int columns_at_once(int64_t cols) {
    return cols < kMomentColumns ? static_cast<int>(cols) : kMomentColumns;
  }
  static int shared_bytes(int64_t cols) {
    return 2 * columns_at_once(cols) * int{sizeof(double)} + 16 * kMomentThreads / 32;
  }
  template <class Ctx>
  static NTKFAST_DEVICE void body(const Ctx& ctx, const MomentArgs<S>& args) {
    const int thread = ctx.thread(), lane = thread % 32, warp = thread / 32;
    const int width = columns_at_once(args.cols);
    const auto panel = ctx.template shared<double>(0, 2 * width);  // g, then h
    const int tail = 2 * width * int{sizeof(double)};
    const auto values = ctx.template shared<double>(tail, kMomentThreads / 32);
    const auto places =
        ctx.template shared<int64_t>(tail + 8 * (kMomentThreads / 32), kMomentThreads / 32);
    const auto load = [&](int64_t first, int count) {
      for (int j = thread; j < count; j += kThreads) {
        panel[j] = args.g[first + j];
        panel[width + j] = args.h[first + j];
      }
    };
    const bool once = args.cols <= width;  // loaded once per block, however many rows it has
    if (once) load(0, width);
    ctx.barrier();
    const double gGg = args.scalars ? args.scalars[0] : 0.0,
                 D = args.scalars ? args.scalars[1] : 1.0;
    double best = -HUGE_VAL;
    int64_t best_row = INT64_MAX;
    for (int64_t first_of_block = ctx.block_x() * kMomentRowsPerBlock; first_of_block < args.rows;
         first_of_block += ctx.grid_x() * kMomentRowsPerBlock) {
      const int64_t first = first_of_block + warp * kWarpRows;
      const S* x[kWarpRows];
      find_rows(args.psi, args.row_stride, args.index, first, args.rows, x);
      double sums[kWarpRows][2] = {};  // <psi_x, g>, <psi_x, h>
      for (int64_t column = 0; column < args.cols; column += width) {
        const int64_t left = args.cols - column;
        const int count = left < width ? static_cast<int>(left) : width;
        if (!once) {
          ctx.barrier();
          load(column, count);
          ctx.barrier();
        }
        add_row_products(lane, x, column, count, panel, width, sums);
      }
      NTKFAST_UNROLL_DEVICE
      for (int r = 0; r < kWarpRows; ++r) {
        const double a = sum_lanes<32>(ctx, sums[r][0]), b = sum_lanes<32>(ctx, sums[r][1]);
        const int64_t i = first + r;
        if (lane != 0 || i >= args.rows) continue;
        const double step = a / D;
        const double q = args.q[i] - step * (2 * b - step * gGg), s = args.s[i] - step * a;
        args.q[i] = q;
        args.s[i] = s;
        if (args.best_value) {
          const double total = s + args.noise[i];
          const double utility = total > 0 ? q / total : 0.0;
          if (better_pick(utility, i, best, best_row)) {
            best = utility;
            best_row = i;
          }
        }
      }
    }
    if (!args.best_value) return;  // the whole block
    if (lane == 0) {
      values[warp] = best;
      places[warp] = best_row;
    }
    ctx.barrier();
    if (thread == 0) {
      for (int w = 1; w < kThreads / 32; ++w) {
        const double value = values[w];
        const int64_t place = places[w];
        if (better_pick(value, place, best, best_row)) {
          best = value;
          best_row = place;
        }
      }
      args.best_value[ctx.block_x()] = best;
      args.best_row[ctx.block_x()] = best_row;
    }
  }
};

/// Takes the best of all blocks as a pick.
template <class S>
struct PickArgs {
  const S* psi;
  int64_t row_stride, cols;
  const int64_t* index;
  double *q, *s;
  const double* noise;
  const double* best_value;
  const int64_t* best_row;
  int64_t blocks;
  double* pick;     // (cols,): psi of the pick
  double* scalars;  // {., D}
  int64_t* picked;  // where the position of the pick goes
  double* utility;
};
template <class S>
struct TakePick {
  static constexpr int kThreads = 256;
  template <class Ctx>
  static NTKFAST_DEVICE void body(const Ctx& ctx, const PickArgs<S>& args) {
    const auto chosen = ctx.template shared<int64_t>(0, 1);
    if (ctx.thread() == 0) {
      double best = -HUGE_VAL;
      int64_t row = INT64_MAX;
      for (int64_t b = 0; b < args.blocks; ++b) {
        if (better_pick(args.best_value[b], args.best_row[b], best, row)) {
          best = args.best_value[b];
          row = args.best_row[b];
        }
      }
      chosen[0] = row;
      *args.picked = row < INT64_MAX ? row : -1;  // -1: nothing comparable was left
      *args.utility = best;
      if (row < INT64_MAX) {
        args.scalars[1] = args.s[row] + args.noise[row];
        args.q[row] = -HUGE_VAL;  // never again
      } else {
        args.scalars[1] = HUGE_VAL;
      }
    }
    ctx.barrier();
    const int64_t row = chosen[0];
    const S* x = row < INT64_MAX ? args.psi + (args.index ? args.index[row] : row) * args.row_stride
                                 : nullptr;
    for (int64_t j = ctx.thread(); j < args.cols; j += kThreads)
      args.pick[j] = x ? number<double>(x[j]) : 0.0;
  }
};

struct MatVecArgs {
  const double* M;  // (n, n), contiguous
  int64_t n;
  const double* v;
  double* out;             // M v
  const double* dot_with;  // adds one row: *dot_out = <dot_with, v>
  double* dot_out;
};
/// One warp per row.
struct MatVec {
  static constexpr int kThreads = 256;
  template <class Ctx>
  static NTKFAST_DEVICE void body(const Ctx& ctx, const MatVecArgs& args) {
    const int64_t i = ctx.block_x() * (kThreads / 32) + ctx.thread() / 32;
    const int lane = ctx.thread() % 32;
    const double* row = i < args.n ? args.M + i * args.n : i == args.n ? args.dot_with : nullptr;
    double sum = 0;
    if (row)
      for (int64_t j = lane; j < args.n; j += 32) sum = fma(row[j], args.v[j], sum);
    sum = sum_lanes<32>(ctx, sum);
    if (lane == 0 && row) *(i < args.n ? args.out + i : args.dot_out) = sum;
  }
};

/// C <- C - g g^T / D, or C <- identity when g is nullptr.
struct OuterArgs {
  double* C;
  int64_t n;
  const double* g;
  const double* scalars;
};
struct OuterDowndate {
  static constexpr int kThreads = 256;
  template <class Ctx>
  static NTKFAST_DEVICE void body(const Ctx& ctx, const OuterArgs& args) {
    const int64_t e = ctx.block_x() * kThreads + ctx.thread();
    if (e >= args.n * args.n) return;
    const int64_t i = e / args.n, j = e % args.n;
    // The smaller index first, so that C stays symmetric bitwise.
    args.C[e] = args.g == nullptr
                    ? (i == j ? 1.0 : 0.0)
                    : args.C[e] - (args.g[i < j ? i : j] / args.scalars[1]) * args.g[i < j ? j : i];
  }
};

/// Blocks of a pass over psi: every warp of a large GPU busy, g and h loaded a few times per
/// multiprocessor.
constexpr int64_t kMomentBlocks = 528;

inline int64_t moment_blocks(int64_t rows) {
  const int64_t all = div_up(rows, kMomentRowsPerBlock);
  return all < kMomentBlocks ? all : kMomentBlocks;
}

template <class Launcher, class S>
void launch_downdate_moments(Launcher& launcher, const MomentArgs<S>& args) {
  launcher.template run<DowndateMoments<S>>({moment_blocks(args.rows), 1},
                                            DowndateMoments<S>::shared_bytes(args.cols), args);
}

/// Doubles of workspace of a selection.
inline int64_t selection_workspace(int64_t rows, int64_t cols) {
  return cols * cols + 4 * cols + 2 + 2 * moment_blocks(rows);
}

template <class S>
struct SelectionArgs {
  const S* psi;
  int64_t row_stride, cols;
  const int64_t* candidates;  // rows of psi that may be picked, or nullptr: all
  int64_t rows;
  const double* G;      // (cols, cols), contiguous: sum_x v psi_x psi_x^T
  double *q, *s;        // (rows,): psi^T G psi and |psi|^2; changed
  const double* noise;  // (rows,)
  int64_t count;        // picks wanted, at most `rows`
  int64_t* picked;      // (count,) positions among the candidates
  double* utilities;    // (count,)
};

/// Sequential variance_reduction: g = C psi_c, h = C G g, D = s_c + lam_c, one pass over psi, C -=
/// g g^T / D, per pick.
template <class Launcher, class S>
void launch_selection(Launcher& launcher, const SelectionArgs<S>& args, double* workspace) {
  if (args.count == 0) return;
  const int64_t d = args.cols, blocks = moment_blocks(args.rows);
  double* C = workspace;
  double* pick = C + d * d;
  double* g = pick + d;
  double* Gg = g + d;
  double* h = Gg + d;
  double* scalars = h + d;
  double* best_value = scalars + 2;
  int64_t* best_row = reinterpret_cast<int64_t*>(best_value + blocks);
  const Grid square{div_up(d * d, OuterDowndate::kThreads), 1};
  const Grid vector{div_up(d + 1, MatVec::kThreads / 32), 1};
  launcher.template run<OuterDowndate>(square, 0, OuterArgs{C, d, nullptr, nullptr});
  // A downdate without columns changes nothing, and finds the first pick.
  launch_downdate_moments(
      launcher, MomentArgs<S>{args.psi, args.row_stride, 0, args.candidates, args.rows, g, h,
                              nullptr, args.q, args.s, args.noise, best_value, best_row});
  for (int64_t t = 0; t < args.count; ++t) {
    launcher.template run<TakePick<S>>(
        {1, 1}, int{sizeof(int64_t)},
        PickArgs<S>{args.psi, args.row_stride, d, args.candidates, args.q, args.s, args.noise,
                    best_value, best_row, blocks, pick, scalars, args.picked + t,
                    args.utilities + t});
    if (t + 1 == args.count) break;
    launcher.template run<MatVec>(vector, 0, MatVecArgs{C, d, pick, g, nullptr, nullptr});
    launcher.template run<MatVec>(vector, 0, MatVecArgs{args.G, d, g, Gg, nullptr, nullptr});
    launcher.template run<MatVec>(vector, 0, MatVecArgs{C, d, Gg, h, g, scalars});
    launch_downdate_moments(
        launcher, MomentArgs<S>{args.psi, args.row_stride, d, args.candidates, args.rows, g, h,
                                scalars, args.q, args.s, args.noise, best_value, best_row});
    launcher.template run<OuterDowndate>(square, 0, OuterArgs{C, d, g, scalars});
  }
}

}  // namespace
}  // namespace ntkfast
