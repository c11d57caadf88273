// The table of per-instruction-set kernels, and the plain structs they take.
//
// kernels_score.cc, kernels_score_blocks.cc, kernels_linalg.cc and kernels_contract.cc are compiled
// once per instruction set; dispatch.cc picks a table once, outside every loop. Kernels do one unit
// of work on one thread, into memory the drivers (one .cc per operation) provide. They include no
// C++ library and share no code with other units, so that no instruction ends up where it does not
// belong.
#pragma once

#include <stdint.h>

#include "core/score_inputs.h"

namespace ntkfast {

/// A matrix to be packed: element (row, k) at data[index[row] * row_stride + k * col_stride],
/// optionally negated and scaled along the depth.
template <class S>
struct Operand {
  const S* data = nullptr;
  int64_t row_stride = 0;
  int64_t col_stride = 1;
  const int64_t* index = nullptr;       // nullptr: rows in order
  const double* depth_scale = nullptr;  // nullptr: ones
  bool negate = false;
};

/// C = beta C + alpha A B^T over the depth [begin, begin + depth), with A (rows, .), B (cols, .);
/// products and sums in T. Only tiles that meet the lower triangle when `lower` is set.
template <class SA, class SB, class T, class O>
struct Gemm {
  Operand<SA> left;
  Operand<SB> right;
  int64_t rows, cols;
  int64_t begin, depth;
  O* out;
  int64_t out_row_stride, out_col_stride;
  double alpha, beta;
  bool lower;
  int64_t chunk_begin, chunk_cols;  // columns whose packed panels are at hand
  T* packed_right;
};

template <class SA, class SB, class T, class O>
struct GemmKernels {
  void (*pack)(const Gemm<SA, SB, T, O>&, int64_t tile);  // one tile of columns of the chunk
  void (*rows)(const Gemm<SA, SB, T, O>&, int64_t tile,
               void* scratch);  // one tile of rows x the chunk
};

/// One call of score_features or score_dense in compute type T.
template <class T>
struct Score : ScoreInputs {
  const double* variance;  // of all points
  const T* dense;          // S (num_points, num_points) or null
  int64_t dense_stride;
  Operand<T> candidate_factor, evaluation_factor;  // covariance += factors' product
  int64_t depth;
  // Filled by the driver; sizes from the kernels' size functions.
  T* points;               // [x tile][1 + point_size][kTileCols], first the weights
  T* prepared_candidates;  // [candidate][candidate_size]
  T* packed_candidates;    // of the current chunk
  int64_t chunk_begin, chunk_rows;
  int64_t tiles_per_group, num_groups;  // x tiles are summed in groups
  int64_t rows_per_segment;  // candidates of one unit of work, a multiple of the tile rows
  double* partial;           // [candidate][group]
};

template <class T>
struct ScoreKernels {
  int64_t (*point_size)(const Score<T>&);
  int64_t (*candidate_size)(const Score<T>&);
  int64_t (*scratch_bytes)(const Score<T>&);
  void (*prepare_points)(const Score<T>&, int64_t x_tile);
  void (*prepare_candidates)(const Score<T>&, int64_t begin, int64_t end);
  void (*pack_candidates)(const Score<T>&, int64_t c_tile);
  void (*unit)(const Score<T>&, int64_t segment, int64_t group, void* scratch);
};

/// One call of score_blocks in compute type T.
template <class T>
struct ScoreBlocks : ScoreInputs {
  const T* covariance;  // blocks (k, k): (row blocks k, column blocks k)
  int64_t covariance_stride;
  const int64_t *rows, *columns;      // blocks of candidates and evaluation points; null: in order
  const double* variance;             // (k, k) for every candidate
  const double* evaluation_variance;  // (k, k) for every evaluation point; may be null
  // Filled by the driver; sizes from the kernels' size functions.
  T* points;                // [x tile][1 + point_size][tile columns], first the weights
  T* prepared_candidates;   // [candidate][candidate_size]
  int32_t* candidate_rows;  // of each; -1: its variance plus noise is not positive definite
  bool* point_is_wrong;     // likewise of an evaluation point
  int64_t tiles_per_group, num_groups;
  double* partial;  // [candidate][group]
};

template <class T>
struct ScoreBlocksKernels {
  int64_t tile_cols;
  int64_t (*point_size)(const ScoreBlocks<T>&);
  int64_t (*candidate_size)(const ScoreBlocks<T>&);
  int64_t (*scratch_bytes)(const ScoreBlocks<T>&);
  void (*prepare_points)(const ScoreBlocks<T>&, int64_t x_tile, void* scratch);
  void (*prepare_candidate)(const ScoreBlocks<T>&, int64_t candidate, void* scratch);
  /// Candidates [begin, end) x the tiles of a group.
  void (*unit)(const ScoreBlocks<T>&, int64_t begin, int64_t end, int64_t group, void* scratch);
};

/// Labels up to which conditioning makes one pass over psi instead of two matrix products.
constexpr int64_t kFewLabels = 4;

struct LinalgKernels {
  const char* isa;
  int64_t tile_rows, tile_cols;
  GemmKernels<double, double, double, double> dddd;  // (left, right, compute, out)
  GemmKernels<double, double, double, float> dddf;
  GemmKernels<float, double, double, float> fddf;
  GemmKernels<float, float, double, double> ffdd;
  GemmKernels<float, double, double, double> fddd;
  GemmKernels<float, float, float, float> ffff;
  /// X <- L^-1 X (or L^-T X) for a lower triangle L (n, n) and columns [begin, end) of X.
  void (*solve_triangle)(const double* L, int64_t ld, int64_t n, double* X, int64_t ldx,
                         int64_t begin, int64_t end, bool transpose);
  /// out[i] = <a_i, b_i>, products and sums in double.
  void (*dot_rows_ff)(const float* a, int64_t lda, const float* b, int64_t ldb, int64_t rows,
                      int64_t cols, double* out);
  void (*dot_rows_fd)(const float* a, int64_t lda, const double* b, int64_t ldb, int64_t rows,
                      int64_t cols, double* out);
  void (*dot_rows_dd)(const double* a, int64_t lda, const double* b, int64_t ldb, int64_t rows,
                      int64_t cols, double* out);
  /// out[i * count + j] = <x_i, b_j> for rows b_j of B, products and sums in double, one pass over
  /// x.
  void (*dots_f)(const float* x, int64_t ld, int64_t rows, int64_t cols, const double* B,
                 int64_t ldb, int64_t count, double* out);
  void (*dots_d)(const double* x, int64_t ld, int64_t rows, int64_t cols, const double* B,
                 int64_t ldb, int64_t count, double* out);
  /// x_i -= sum_j factors[i * count + j] c_j for at most kFewLabels rows c_j of C, sums in double,
  /// rounded once.
  void (*subtract_f)(float* x, int64_t ld, int64_t rows, int64_t cols, const double* factors,
                     const double* C, int64_t ldc, int64_t count);
  void (*subtract_d)(double* x, int64_t ld, int64_t rows, int64_t cols, const double* factors,
                     const double* C, int64_t ldc, int64_t count);
};

/// A count-sketch and the parameters [start, ...) of a gradient to be added to it. Entry p of them
/// goes to bucket (column + p + shift) mod dim of its run, negated where its sign bit is set.
struct Sketch {
  int64_t dim;
  int64_t column;         // start mod dim
  int64_t bit;            // sign bit of the first entry
  const uint8_t* signs;   // bits, lowest first, and two bytes beyond the last
  const int64_t* shifts;  // of the runs of dim parameters, from that of `start` on
};

/// Whether 16 positions from a multiple of 16 on follow one another in memory.
enum class Run : uint8_t { kNone, kHalves, kWhole };

/// A matrix (positions, columns) per sample: element (t, j) of sample i at
/// data[i * sample_stride + positions[t] + columns[j]]. Windows of a convolution need no copies.
template <class T>
struct Gathered {
  const T* data;
  int64_t sample_stride;
  const int32_t* positions;
  const int32_t* columns;
  const Run* runs;  // of every 16 positions
};

/// left_i^T right_i of every sample i, group by group: `groups` matrices (rows, size), flattened.
template <class T>
struct Gradients {
  Gathered<T> left, right;            // groups * rows and groups * size columns
  int64_t depth, groups, rows, size;  // depth: number of positions
  T* out;                             // (samples, .): sketches, or the gradients themselves
  int64_t out_stride;
};

/// out(i R + a, j R2 + b) += sum_{t, s} <left_ait, left2_bjs> <right_it, right2_js>; rows of the
/// operands are (sample, position) pairs, those of each combination of left after another.
template <class T>
struct Ghost {
  Operand<T> left, right, left2, right2;
  int64_t samples, samples2, combinations, combinations2;
  int64_t positions, positions2, left_size, right_size;
  T* out;
  int64_t out_stride;
  bool lower;
  int64_t chunk_begin, chunk_cols;  // rows of left2 and right2 whose packed panels are at hand
  T* packed;
};

template <class T>
struct ContractKernels {
  int64_t tile_rows, tile_cols;
  void (*sketch_add)(const Sketch&, const T* values, int64_t count, T* out);
  int64_t (*gradients_scratch)(const Gradients<T>&);
  void (*sketch_gradients)(const Gradients<T>&, const Sketch&, int64_t sample, void* scratch);
  void (*form_gradients)(const Gradients<T>&, bool add, int64_t sample, void* scratch);
  int64_t (*gram_ghost_scratch)(const Ghost<T>&);
  void (*gram_ghost_pack)(const Ghost<T>&, int64_t tile);
  void (*gram_ghost_rows)(const Ghost<T>&, int64_t begin, int64_t end, void* scratch);
};

struct Kernels {
  ScoreKernels<float> score_float;
  ScoreKernels<double> score_double;
  ScoreBlocksKernels<float> score_blocks_float;
  ScoreBlocksKernels<double> score_blocks_double;
  LinalgKernels linalg;
  ContractKernels<float> contract_float;
  ContractKernels<double> contract_double;
};

/// The table for this processor: the best instruction set it has, or the one NTKFAST_CPU_ISA names
/// (baseline, avx2, avx512). Throws InvalidArgument for a name that is unknown or unsupported here.
const Kernels& kernels();

}  // namespace ntkfast
