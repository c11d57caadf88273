// Matrix kernels: general product, quadratic forms, row norms, triangular systems. Float64 sums
// wherever the CPU engine has them.
#pragma once

#include "cuda/double_tile.cuh"
#include "cuda/tile.cuh"

namespace ntkfast {
namespace {

// --- C = beta C + alpha A B^T ---

enum class Part { kAll, kLower };

template <class SA, class SB, class O>
struct GemmArgs {
  Factor<SA> left;   // (rows, depth)
  Factor<SB> right;  // (cols, depth)
  int64_t rows, cols, depth;
  O* out;
  int64_t out_row_stride, out_col_stride;
  double alpha, beta;
  Part part = Part::kAll;
};

/// One block per tile of C; products and sums in T.
template <class SA, class SB, class T, class O>
struct Gemm {
  static constexpr int kThreads = kTileThreads;
  template <class Ctx>
  static NTKFAST_DEVICE void body(const Ctx& ctx, const GemmArgs<SA, SB, O>& args) {
    const int64_t tile_columns = div_up(args.cols, kTileSize);
    const int64_t row0 = ctx.block_x() / tile_columns * kTileSize;
    const int64_t col0 = ctx.block_x() % tile_columns * kTileSize;
    if (args.part != Part::kAll && col0 > row0) return;  // the whole block
    Tile<T> tile;
    tile.clear();
    multiply_tile(ctx, args.depth, args.left, row0, args.rows, args.right, col0, args.cols, tile);
    const int64_t row = row0 + Tile<T>::row(ctx.thread()), col = col0 + Tile<T>::col(ctx.thread());
    const T alpha = static_cast<T>(args.alpha), beta = static_cast<T>(args.beta);
    NTKFAST_UNROLL_DEVICE
    for (int i = 0; i < 4; ++i) {
      NTKFAST_UNROLL_DEVICE
      for (int j = 0; j < 2; ++j) {
        NTKFAST_UNROLL_DEVICE
        for (int lane = 0; lane < 2; ++lane) {
          const int64_t r = row + 16 * i, c = col + 32 * j + lane;
          if (r >= args.rows || c >= args.cols || (args.part != Part::kAll && c > r)) continue;
          O& out = args.out[r * args.out_row_stride + c * args.out_col_stride];
          T value = alpha * tile.value[i][j].v[lane];
          // What C held, NaN included, is not read when it does not count.
          if (beta != T(0)) value = beta * static_cast<T>(out) + value;
          out = static_cast<O>(value);
        }
      }
    }
  }
};

template <class T, class Launcher, class SA, class SB, class O>
void launch_gemm(Launcher& launcher, const GemmArgs<SA, SB, O>& args) {
  launcher.template run<Gemm<SA, SB, T, O>>(
      {div_up(args.rows, kTileSize) * div_up(args.cols, kTileSize), 1}, tile_shared_bytes<T>(),
      args);
}

// --- Rows ---

template <class S>
struct RowArgs {
  const S* X;
  int64_t row_stride, rows, cols;
  const double* G;  // (cols, cols), quadratic forms only
  int64_t G_stride;
  double* out;
};

/// out[i] = |x_i|^2, one warp per row.
template <class S>
struct SquaredNorms {
  static constexpr int kThreads = 256;
  template <class Ctx>
  static NTKFAST_DEVICE void body(const Ctx& ctx, const RowArgs<S>& args) {
    const int64_t i = ctx.block_x() * (kThreads / 32) + ctx.thread() / 32;
    const int lane = ctx.thread() % 32;
    double sum = 0;
    if (i < args.rows) {
      const S* x = args.X + i * args.row_stride;
      for (int64_t j = lane; j < args.cols; j += 32)
        sum = fma(number<double>(x[j]), number<double>(x[j]), sum);
    }
    sum = sum_lanes<32>(ctx, sum);
    if (lane == 0 && i < args.rows) args.out[i] = sum;
  }
};

/// out[i] = x_i^T G x_i: a block takes 128 rows through all tiles of X G.
template <class S>
struct QuadraticForm {
  static constexpr int kThreads = kDoubleThreads;
  static constexpr int shared_bytes() {
    return kDoubleTileBytes + 4 * kDoubleSize * int{sizeof(double)};
  }
  template <class Ctx>
  static NTKFAST_DEVICE void body(const Ctx& ctx, const RowArgs<S>& args) {
    const int thread = ctx.thread();
    const int64_t row0 = ctx.block_x() * kDoubleSize;
    // Four warps share a row; their sums do not take registers from the tile.
    const auto sums = ctx.template shared<double>(kDoubleTileBytes, 4 * kDoubleSize);
    const int first = thread / 32 % 4 * kDoubleSize;
    NTKFAST_KEEP_LOOP
    for (int64_t col0 = 0; col0 < args.cols; col0 += kDoubleSize) {
      DoubleTile tile;
      tile.clear();
      multiply_doubles(ctx, 0, args.cols, RowByRow<S>{args.X, args.row_stride}, row0, args.rows,
                       SideBySide<double>{args.G, args.G_stride}, col0, args.cols, tile);
      NTKFAST_UNROLL_DEVICE
      for (int m = 0; m < 4; ++m) {
        NTKFAST_UNROLL_DEVICE
        for (int h = 0; h < 2; ++h) {
          const int row = DoubleTile::row(thread, m, 2 * h);
          double sum = 0;
          NTKFAST_UNROLL_DEVICE
          for (int n = 0; n < 4; ++n) {
            NTKFAST_UNROLL_DEVICE
            for (int e = 2 * h; e < 2 * h + 2; ++e) {
              const int64_t c = col0 + DoubleTile::col(thread, n, e);
              if (row0 + row < args.rows && c < args.cols)
                sum = fma(number<double>(args.X[(row0 + row) * args.row_stride + c]),
                          tile.value[m][n][e], sum);
            }
          }
          sum = sum_lanes<4>(ctx, sum);
          if (thread % 4 == 0)
            sums[first + row] = col0 == 0 ? sum : static_cast<double>(sums[first + row]) + sum;
        }
      }
    }
    ctx.barrier();
    if (thread >= kDoubleSize || row0 + thread >= args.rows) return;
    double total = 0;
    for (int w = 0; w < 4 && args.cols > 0; ++w)
      total += static_cast<double>(sums[w * kDoubleSize + thread]);
    args.out[row0 + thread] = total;
  }
};

template <class Launcher, class S>
void launch_quadratic_form(Launcher& launcher, const RowArgs<S>& args) {
  launcher.template run<QuadraticForm<S>>({div_up(args.rows, kDoubleSize), 1},
                                          QuadraticForm<S>::shared_bytes(), args);
}

// --- Triangles on the diagonal ---

/// Rows of a triangle that is solved by substitution; everything else is products.
constexpr int kTriangle = 64;

struct TriangleArgs {
  double* L;  // (n, n), row stride L_stride
  int64_t L_stride, n;
  double* X;  // element (i, j) at X[i * row_stride + j * col_stride]: (n, cols)
  int64_t row_stride, col_stride, cols;
  bool transpose;
  int64_t first_row;  // of the triangle in the whole matrix
  int64_t*
      failed;  // 1 + the first row at which the matrix shows not to be positive definite; 0: none
};

/// X <- L^-1 X or L^-T X for one triangle of at most 64 rows; a thread per column of X.
struct SolveTriangle {
  static constexpr int kThreads = 64;
  static constexpr int kStride = kTriangle + 1;
  static constexpr int shared_bytes() { return kTriangle * kStride * int{sizeof(double)}; }
  template <class Ctx>
  static NTKFAST_DEVICE void body(const Ctx& ctx, const TriangleArgs& args) {
    const auto L = ctx.template shared<double>(0, kTriangle * kStride);
    const int thread = ctx.thread(), n = static_cast<int>(args.n);
    for (int e = thread; e < n * n; e += kThreads)
      L[(e / n) * kStride + e % n] = args.L[(e / n) * args.L_stride + e % n];
    ctx.barrier();
    const int64_t j = ctx.block_x() * kThreads + thread;
    if (j >= args.cols) return;
    double* column = args.X + j * args.col_stride;
    for (int s = 0; s < n; ++s) {
      const int i = args.transpose ? n - 1 - s : s;
      double value = column[i * args.row_stride];
      for (int t = 0; t < s; ++t) {
        const int p = args.transpose ? n - 1 - t : t;
        const double factor = args.transpose ? L[p * kStride + i] : L[i * kStride + p];
        value = fma(-factor, column[p * args.row_stride], value);
      }
      value /= L[i * kStride + i];
      column[i * args.row_stride] = value;
    }
  }
};

/// Cholesky factor of one triangle of at most 64 rows, in place, by one block of threads. The upper
/// part becomes zero.
struct FactorTriangle {
  static constexpr int kThreads = 64;
  static constexpr int kStride = kTriangle + 1;
  static constexpr int shared_bytes() { return kTriangle * kStride * int{sizeof(double)}; }
  template <class Ctx>
  static NTKFAST_DEVICE void body(const Ctx& ctx, const TriangleArgs& args) {
    const auto L = ctx.template shared<double>(0, kTriangle * kStride);
    const int thread = ctx.thread(), n = static_cast<int>(args.n);
    for (int e = thread; e < n * n; e += kThreads)
      L[(e / n) * kStride + e % n] = args.L[(e / n) * args.L_stride + e % n];
    ctx.barrier();
    for (int j = 0; j < n; ++j) {
      // Thread i holds row i: its entry of column j once the columns before have been taken out.
      double value = 0;
      if (thread >= j && thread < n) {
        value = L[thread * kStride + j];
        for (int p = 0; p < j; ++p)
          value = fma(-static_cast<double>(L[thread * kStride + p]),
                      static_cast<double>(L[j * kStride + p]), value);
      }
      ctx.barrier();
      if (thread == j) {
        if (!(value > 0 && value < 1e300) && *args.failed == 0)
          *args.failed = args.first_row + j + 1;
        value = sqrt(value);
        L[j * kStride + j] = value;
      }
      ctx.barrier();
      if (thread > j && thread < n) L[thread * kStride + j] = value / L[j * kStride + j];
      ctx.barrier();
    }
    for (int e = thread; e < n * n; e += kThreads)
      args.L[(e / n) * args.L_stride + e % n] =
          e % n <= e / n ? static_cast<double>(L[(e / n) * kStride + e % n]) : 0.0;
  }
};

struct ClearArgs {
  double* out;
  int64_t out_stride, rows, cols;
};
/// out <- 0; one thread per element.
struct Clear {
  static constexpr int kThreads = 256;
  template <class Ctx>
  static NTKFAST_DEVICE void body(const Ctx& ctx, const ClearArgs& args) {
    const int64_t e = ctx.block_x() * kThreads + ctx.thread();
    if (e < args.rows * args.cols) args.out[e / args.cols * args.out_stride + e % args.cols] = 0.0;
  }
};

// --- Drivers ---

/// X <- L^-1 X, or L^-T X: X (n, cols) with element (i, j) at X[i * row_stride + j * col_stride].
template <class Launcher>
void launch_triangular_solve(Launcher& launcher, const double* L, int64_t L_stride, int64_t n,
                             double* X, int64_t row_stride, int64_t col_stride, int64_t cols,
                             bool transpose) {
  const int64_t triangles = div_up(n, kTriangle);
  if (cols == 0) return;
  for (int64_t step = 0; step < triangles; ++step) {
    const int64_t i = (transpose ? triangles - 1 - step : step) * kTriangle;
    const int64_t rows = n - i < kTriangle ? n - i : kTriangle;
    if (step > 0) {
      const int64_t from = transpose ? i + rows : 0, depth = transpose ? n - from : i;
      const Factor<double> factor = transpose ? Factor<double>{L + from * L_stride + i, 1, L_stride}
                                              : Factor<double>{L + i * L_stride, L_stride, 1};
      launch_gemm<double>(launcher, GemmArgs<double, double, double>{
                                        factor,
                                        {X + from * row_stride, col_stride, row_stride},
                                        rows,
                                        cols,
                                        depth,
                                        X + i * row_stride,
                                        row_stride,
                                        col_stride,
                                        -1.0,
                                        1.0});
    }
    launcher.template run<SolveTriangle>(
        {div_up(cols, SolveTriangle::kThreads), 1}, SolveTriangle::shared_bytes(),
        TriangleArgs{const_cast<double*>(L) + i * L_stride + i, L_stride, rows, X + i * row_stride,
                     row_stride, col_stride, cols, transpose, 0, nullptr});
  }
}

/// L <- Cholesky factor of the matrix whose lower part L holds; `failed` must be zero before.
template <class Launcher>
void launch_cholesky(Launcher& launcher, double* L, int64_t stride, int64_t n, int64_t* failed) {
  for (int64_t j = 0; j < n; j += kTriangle) {
    const int64_t width = n - j < kTriangle ? n - j : kTriangle, below = n - j - width;
    double* diagonal = L + j * stride + j;
    launcher.template run<FactorTriangle>(
        {1, 1}, FactorTriangle::shared_bytes(),
        TriangleArgs{diagonal, stride, width, nullptr, 0, 0, 0, false, j, failed});
    if (below == 0) break;
    double* panel = diagonal + width * stride;
    // panel <- panel L^-T: its rows are the columns of the solve.
    launcher.template run<SolveTriangle>(
        {div_up(below, SolveTriangle::kThreads), 1}, SolveTriangle::shared_bytes(),
        TriangleArgs{diagonal, stride, width, panel, 1, stride, below, false, 0, nullptr});
    launch_gemm<double>(launcher, GemmArgs<double, double, double>{{panel, stride, 1},
                                                                   {panel, stride, 1},
                                                                   below,
                                                                   below,
                                                                   width,
                                                                   panel + width,
                                                                   stride,
                                                                   1,
                                                                   -1.0,
                                                                   1.0,
                                                                   Part::kLower});
    launcher.template run<Clear>({div_up(width * below, Clear::kThreads), 1}, 0,
                                 ClearArgs{diagonal + width, stride, width, below});
  }
}

/// psi <- psi - (psi U^T) C; `projection` (rows, rank) is workspace. Products and sums in double: U
/// and C carry the condition of the labelled Gram matrix, which would multiply the rounding of
/// float.
template <class S, class Launcher>
void launch_condition_features(Launcher& launcher, S* psi, int64_t stride, int64_t rows,
                               int64_t cols, const double* U, int64_t U_stride, const double* C,
                               int64_t C_stride, int64_t rank, double* projection) {
  if (rank == 0) return;
  launch_gemm<double>(
      launcher,
      GemmArgs<S, double, double>{
          {psi, stride, 1}, {U, U_stride, 1}, rows, rank, cols, projection, rank, 1, 1.0, 0.0});
  launch_gemm<double>(
      launcher,
      GemmArgs<double, double, S>{
          {projection, rank, 1}, {C, 1, C_stride}, rows, cols, rank, psi, stride, 1, -1.0, 1.0});
}

/// S <- S - V^T V in double, rounded once; both parts are computed, with the same products in the
/// same order, so S stays symmetric bitwise.
template <class T, class Launcher>
void launch_condition_dense(Launcher& launcher, T* S, int64_t stride, int64_t n, const double* V,
                            int64_t V_stride, int64_t rank) {
  if (rank == 0) return;
  launch_gemm<double>(launcher,
                      GemmArgs<double, double, T>{
                          {V, 1, V_stride}, {V, 1, V_stride}, n, n, rank, S, stride, 1, -1.0, 1.0});
}

}  // namespace
}  // namespace ntkfast
