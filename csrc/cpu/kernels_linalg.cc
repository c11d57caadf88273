// Matrix kernels for one instruction set: tiles of C = beta C + alpha A B^T, triangles, dot
// products. Compiled once per instruction set with NTKFAST_ISA naming it; see kernels.h.
#include "cpu/gemm_tile.h"

namespace ntkfast {
namespace {

template <class SA, class SB, class T, class O>
void pack_gemm(const Gemm<SA, SB, T, O>& gemm, int64_t tile) {
  const int64_t first = tile * kTileCols;
  const int64_t left = gemm.chunk_cols - first;
  pack_rows<T>(gemm.right, gemm.chunk_begin + first, left < kTileCols ? left : kTileCols,
               gemm.begin, gemm.depth, panel_cols<T>(), kTileCols,
               gemm.packed_right + first * gemm.depth);
}

template <class SA, class SB, class T, class O>
void gemm_rows(const Gemm<SA, SB, T, O>& gemm, int64_t tile, void* scratch) {
  T* left = static_cast<T*>(scratch);
  T* product = left + round_up(kTileRows * gemm.depth, 64);
  const int64_t first = tile * kTileRows;
  const int64_t rows = gemm.rows - first < kTileRows ? gemm.rows - first : kTileRows;
  const int64_t padded = round_up(rows, kPanelRows);
  pack_rows<T>(gemm.left, first, rows, gemm.begin, gemm.depth, kPanelRows, padded, left);
  const T alpha = static_cast<T>(gemm.alpha), beta = static_cast<T>(gemm.beta);
  for (int64_t j0 = 0; j0 < gemm.chunk_cols; j0 += kTileCols) {
    const int64_t col = gemm.chunk_begin + j0;
    if (gemm.lower && col > first + rows - 1) break;
    int64_t cols = gemm.chunk_cols - j0 < kTileCols ? gemm.chunk_cols - j0 : kTileCols;
    if (gemm.lower && first + rows - col < cols) cols = first + rows - col;
    for (int64_t i = 0; i < padded * kTileCols; ++i) product[i] = T(0);
    multiply_tile(gemm.depth, padded, left, gemm.packed_right + j0 * gemm.depth, product, cols);
    for (int64_t i = 0; i < rows; ++i) {
      O* out = gemm.out + (first + i) * gemm.out_row_stride + col * gemm.out_col_stride;
      const T* source = product + i * kTileCols;
      const int64_t step = gemm.out_col_stride;
      if (beta == T(0)) {  // whatever the output held, NaN included, is not read
        for (int64_t j = 0; j < cols; ++j) out[j * step] = static_cast<O>(alpha * source[j]);
      } else {
        for (int64_t j = 0; j < cols; ++j)
          out[j * step] = static_cast<O>(beta * static_cast<T>(out[j * step]) + alpha * source[j]);
      }
    }
  }
}

/// Substitution, vectorised over the columns of X.
void solve_triangle(const double* L, int64_t ld, int64_t n, double* X, int64_t ldx, int64_t begin,
                    int64_t end, bool transpose) {
  constexpr int64_t kColumns = 64;  // a stripe of X stays in cache
  for (int64_t j0 = begin; j0 < end; j0 += kColumns) {
    const int64_t cols = end - j0 < kColumns ? end - j0 : kColumns;
    double* stripe = X + j0;
    for (int64_t s = 0; s < n; ++s) {
      const int64_t i = transpose ? n - 1 - s : s;
      double* row = stripe + i * ldx;
      for (int64_t t = 0; t < s; ++t) {
        const int64_t p = transpose ? n - 1 - t : t;
        const double factor = transpose ? L[p * ld + i] : L[i * ld + p];
        const double* other = stripe + p * ldx;
        for (int64_t j = 0; j < cols; ++j) row[j] -= factor * other[j];
      }
      const double diagonal = L[i * ld + i];
      for (int64_t j = 0; j < cols; ++j) row[j] /= diagonal;
    }
  }
}

/// <x, b_j> for M rows b_j. Sixteen running sums each hide the latency of the additions; their
/// order is fixed.
template <int M, class A, class B>
NTKFAST_INLINE void dots(const A* x, const B* b, int64_t ldb, int64_t n, double* out) {
  constexpr int kLanes = 16;
  double sums[M][kLanes] = {};
  int64_t k = 0;
  for (; k + kLanes <= n; k += kLanes) {
    for (int j = 0; j < M; ++j)
      for (int l = 0; l < kLanes; ++l)
        sums[j][l] += static_cast<double>(x[k + l]) * static_cast<double>(b[j * ldb + k + l]);
  }
  for (int j = 0; j < M; ++j) {
    double sum = 0;
    for (int64_t i = k; i < n; ++i)
      sum += static_cast<double>(x[i]) * static_cast<double>(b[j * ldb + i]);
    for (int l = 0; l < kLanes; ++l) sum += sums[j][l];
    out[j] = sum;
  }
}

template <class A, class B>
void dot_rows(const A* a, int64_t lda, const B* b, int64_t ldb, int64_t rows, int64_t cols,
              double* out) {
  for (int64_t i = 0; i < rows; ++i) dots<1>(a + i * lda, b + i * ldb, 0, cols, out + i);
}

template <class S>
void dots_rows(const S* x, int64_t ld, int64_t rows, int64_t cols, const double* B, int64_t ldb,
               int64_t count, double* out) {
  for (int64_t i = 0; i < rows; ++i) {
    const S* row = x + i * ld;
    double* target = out + i * count;
    int64_t j = 0;
    for (; j + 2 <= count; j += 2) dots<2>(row, B + j * ldb, ldb, cols, target + j);
    if (j < count) dots<1>(row, B + j * ldb, ldb, cols, target + j);
  }
}

/// x -= sum_j factor[j] c_j for M rows c_j, in double, rounded once.
template <int M, class S>
NTKFAST_INLINE void subtract(S* x, int64_t n, const double* factor, const double* C, int64_t ldc) {
  for (int64_t k = 0; k < n; ++k) {
    double value = static_cast<double>(x[k]);
    for (int j = 0; j < M; ++j) value -= factor[j] * C[j * ldc + k];
    x[k] = static_cast<S>(value);
  }
}

template <class S>
void subtract_rows(S* x, int64_t ld, int64_t rows, int64_t cols, const double* factors,
                   const double* C, int64_t ldc, int64_t count) {
  for (int64_t i = 0; i < rows; ++i) {
    S* row = x + i * ld;
    const double* factor = factors + i * count;
    if (count == 1) subtract<1>(row, cols, factor, C, ldc);
    if (count == 2) subtract<2>(row, cols, factor, C, ldc);
    if (count == 3) subtract<3>(row, cols, factor, C, ldc);
    if (count == 4) subtract<4>(row, cols, factor, C, ldc);
  }
}

template <class SA, class SB, class T, class O>
constexpr GemmKernels<SA, SB, T, O> gemm_kernels() {
  return {pack_gemm<SA, SB, T, O>, gemm_rows<SA, SB, T, O>};
}

}  // namespace

#define NTKFAST_JOIN_(a, b) a##b
#define NTKFAST_JOIN(a, b) NTKFAST_JOIN_(a, b)
#define NTKFAST_TEXT_(a) #a
#define NTKFAST_TEXT(a) NTKFAST_TEXT_(a)

extern const LinalgKernels NTKFAST_JOIN(kLinalg_, NTKFAST_ISA);
const LinalgKernels NTKFAST_JOIN(kLinalg_, NTKFAST_ISA) = {
    NTKFAST_TEXT(NTKFAST_ISA),
    kTileRows,
    kTileCols,
    gemm_kernels<double, double, double, double>(),
    gemm_kernels<double, double, double, float>(),
    gemm_kernels<float, double, double, float>(),
    gemm_kernels<float, float, double, double>(),
    gemm_kernels<float, double, double, double>(),
    gemm_kernels<float, float, float, float>(),
    solve_triangle,
    dot_rows<float, float>,
    dot_rows<float, double>,
    dot_rows<double, double>,
    dots_rows<float>,
    dots_rows<double>,
    subtract_rows<float>,
    subtract_rows<double>,
};

}  // namespace ntkfast
