// Scoring of a matrix-valued kernel for one instruction set: blocks of a tile of points -> rows ->
// criterion -> sum. Compiled once per instruction set with NTKFAST_ISA naming it; see kernels.h.
//
// A tile is one panel of evaluation points along the lanes. For each candidate its
// k x k blocks of covariances are transposed once into planes [a][b][point]; every row of the
// candidate then is a product of them with k broadcast numbers.
#include "cpu/gemm_tile.h"
#include "cpu/kernels.h"
#include "math/block_criteria.h"

namespace ntkfast {
namespace {

template <class T>
constexpr int tile_cols() {
  return panel_cols<T>();
}

template <class T>
struct PlaneLane {  // number j of a prepared point or of a row, under one register of lanes
  const T* first;
  NTKFAST_INLINE Pack<T> operator()(int j) const {
    return Pack<T>::load(first + j * tile_cols<T>());
  }
};

template <class T>
struct GridLane {  // number j of row i, under one register of lanes
  T* first;
  int k;
  NTKFAST_INLINE T* at(int i, int j) const { return first + (int64_t{i} * k + j) * tile_cols<T>(); }
  NTKFAST_INLINE Pack<T> load(int i, int j) const { return Pack<T>::load(at(i, j)); }
  NTKFAST_INLINE void store(int i, int j, Pack<T> value) const { value.store(at(i, j)); }
};

template <class T>
struct Scalars {
  const T* first;
  NTKFAST_INLINE T operator()(int j) const { return first[j]; }
};

template <class T>
int64_t point_size(const ScoreBlocks<T>& score) {
  int size = 0;
  visit_block(score.criterion, [&](auto c) { size = decltype(c)::point_size(score.classes); });
  return 1 + size;
}

/// Rows (k, k), their weights (k), two further numbers.
template <class T>
int64_t candidate_size(const ScoreBlocks<T>& score) {
  return int64_t{score.classes} * (score.classes + 1) + 2;
}

/// Scratch of one thread: the planes of the blocks, the rows made of them, what a criterion needs.
/// Before there are any, the work of prepare_* in double.
template <class T>
struct Scratch {
  T *block, *rows;
  Pack<T>* values;
  double* work;
  int64_t bytes;
  Scratch(const ScoreBlocks<T>& score, void* memory) {
    const int64_t k = score.classes;
    int64_t num_rows = 0, num_values = 0;
    visit_block(score.criterion, [&](auto c) {
      using Criterion = decltype(c);
      if constexpr (Criterion::kRowwise) {
        num_rows = k < kPanelRows ? k : kPanelRows;
      } else {
        num_rows = k;
        num_values = Criterion::scratch_size(score.classes);
      }
    });
    block = static_cast<T*>(memory);
    rows = block + k * k * tile_cols<T>();
    T* end = rows + num_rows * k * tile_cols<T>();
    values = reinterpret_cast<Pack<T>*>(end);
    work = static_cast<double*>(memory);
    bytes = (k * k + num_rows * k) * tile_cols<T>() * int64_t{sizeof(T)} +
            num_values * int64_t{sizeof(Pack<T>)};
    const int64_t work_bytes = k * (2 * k + 1) * int64_t{sizeof(double)};
    bytes = bytes < work_bytes ? work_bytes : bytes;
  }
};

template <class T>
int64_t scratch_bytes(const ScoreBlocks<T>& score) {
  return Scratch<T>(score, nullptr).bytes;
}

template <class T>
void prepare_points(const ScoreBlocks<T>& score, int64_t x_tile, void* memory) {
  constexpr int kCols = tile_cols<T>();
  const Scratch<T> scratch(score, memory);
  const int64_t planes = point_size(score), k = score.classes;
  T* panel = score.points + x_tile * planes * kCols;
  for (int64_t i = 0; i < planes * kCols; ++i) panel[i] = T(0);
  for (int64_t lane = 0; lane < kCols; ++lane) {
    const int64_t i = x_tile * kCols + lane;
    if (i >= score.num_evaluation)
      break;  // lanes beyond the last point have weight 0 and finite values
    const int64_t x = score.evaluation[i];
    panel[lane] = static_cast<T>(score.weights[i]);
    const BlockPoint point{
        {score.mean + x * k, score.outputs + x * k, score.targets ? score.targets + i * k : nullptr,
         0.0, 0.0},
        score.evaluation_variance ? score.evaluation_variance + i * k * k : nullptr};
    const Prepared<T> out{panel + kCols + lane, kCols};
    visit_block(score.criterion, [&](auto c) {
      score.point_is_wrong[i] = !decltype(c)::prepare_point(score, point, scratch.work, out);
    });
  }
}

template <class T>
void prepare_candidate(const ScoreBlocks<T>& score, int64_t i, void* memory) {
  const Scratch<T> scratch(score, memory);
  const int64_t k = score.classes, c = score.candidates[i];
  const BlockCandidate candidate{
      {score.mean + c * k, score.outputs + c * k, score.label_probs + i * k, 0.0, score.noise[i]},
      score.variance + i * k * k};
  T* rows = score.prepared_candidates + i * candidate_size(score);
  const CandidateRows<T> out{rows, rows + k * k, rows + k * (k + 1), scratch.work};
  visit_block(score.criterion, [&](auto criterion) {
    score.candidate_rows[i] = decltype(criterion)::prepare_candidate(score, candidate, out);
  });
}

/// out[i][b] = start[b] + sum_a rows[i][a] block[a][b] for `Rows` rows and every b; start may be
/// null. Bounded, so that infinities do not meet.
template <class T, int Rows>
void multiply_rows(int k, const T* rows, const T* start, const T* block, T* out) {
  using V = Pack<T>;
  constexpr int kCols = tile_cols<T>();
  const V low(logit_floor<T>()), high(-logit_floor<T>());
  for (int64_t b = 0; b < k; ++b) {
    V sum[Rows][kPanelPacks];
    NTKFAST_UNROLL
    for (int j = 0; j < kPanelPacks; ++j) {
      const V first = start ? V::load(start + b * kCols + j * V::kLanes) : V(T(0));
      NTKFAST_UNROLL
      for (int i = 0; i < Rows; ++i) sum[i][j] = first;
    }
    const T* column = block + b * kCols;
    for (int64_t a = 0; a < k; ++a, column += k * kCols) {
      V right[kPanelPacks];
      NTKFAST_UNROLL
      for (int j = 0; j < kPanelPacks; ++j) right[j] = V::load(column + j * V::kLanes);
      NTKFAST_UNROLL
      for (int i = 0; i < Rows; ++i) {
        const V left(rows[i * k + a]);
        NTKFAST_UNROLL
        for (int j = 0; j < kPanelPacks; ++j) sum[i][j] = fma_of(left, right[j], sum[i][j]);
      }
    }
    NTKFAST_UNROLL
    for (int i = 0; i < Rows; ++i) {
      NTKFAST_UNROLL
      for (int j = 0; j < kPanelPacks; ++j)
        max_of(min_of(sum[i][j], high), low).store(out + (i * k + b) * kCols + j * V::kLanes);
    }
  }
}

/// The same for a number of rows known at run time, 1 ... kPanelRows.
template <class T, int Rows = kPanelRows>
NTKFAST_INLINE void multiply_rows(int count, int k, const T* rows, const T* start, const T* block,
                                  T* out) {
  if constexpr (Rows > 0) {
    if (count == Rows) {
      multiply_rows<T, Rows>(k, rows, start, block, out);
    } else {
      multiply_rows<T, Rows - 1>(count, k, rows, start, block, out);
    }
  }
}

/// What a candidate is worth to the points of a tile, summed over all but the lanes.
template <class T, class Criterion>
Pack<T> score_tile(int k, int count, const T* candidate, const T* points,
                   const Scratch<T>& scratch) {
  using V = Pack<T>;
  constexpr int kCols = tile_cols<T>();
  const T *weights = candidate + int64_t{k} * k, *x = points + kCols;
  const T* start = Criterion::kStarts ? x : nullptr;
  // Rows in portions of about the same height.
  const int portions = (count + kPanelRows - 1) / kPanelRows;
  const int height = (count + portions - 1) / portions;
  V sum[kPanelPacks];
  for (int j = 0; j < kPanelPacks; ++j) sum[j] = V(T(0));
  for (int first = 0; first < count; first += height) {
    const int rows = count - first < height ? count - first : height;
    T* out = scratch.rows + (Criterion::kRowwise ? 0 : int64_t{first} * k * kCols);
    multiply_rows<T>(rows, k, candidate + int64_t{first} * k, start, scratch.block, out);
    if constexpr (Criterion::kRowwise) {
      for (int i = 0; i < rows; ++i) {
        const V weight(weights[first + i]);
        for (int j = 0; j < kPanelPacks; ++j) {
          const PlaneLane<T> row{out + int64_t{i} * k * kCols + j * V::kLanes};
          const PlaneLane<T> point{x + j * V::kLanes};
          sum[j] = fma_of(weight, Criterion::template row_value<V>(k, row, point), sum[j]);
        }
      }
    }
  }
  if constexpr (!Criterion::kRowwise) {
    for (int j = 0; j < kPanelPacks; ++j) {
      const GridLane<T> rows{scratch.rows + j * V::kLanes, k};
      const PlaneLane<T> point{x + j * V::kLanes};
      const Scalars<T> further{weights + k};
      sum[j] = Criterion::template pair_value<V>(k, rows, point, further, scratch.values);
    }
  }
  V total(T(0));
  for (int j = 0; j < kPanelPacks; ++j)
    total = fma_of(V::load(points + j * V::kLanes), sum[j], total);
  return total;
}

/// Asks memory for what the next tile takes of a row: its pieces are too short for the processor to
/// see a stream in them.
template <class T>
NTKFAST_INLINE void prefetch(const Operand<T>& row, int64_t x0, int64_t num_evaluation, int64_t k) {
  const int64_t end = num_evaluation - x0 < tile_cols<T>() ? num_evaluation : x0 + tile_cols<T>();
  for (int64_t x = x0; x < end; ++x) {
    const T* block = row.data + (row.index ? row.index[x] : x) * k;
    for (int64_t b = 0; b < k; b += 64 / int64_t{sizeof(T)}) __builtin_prefetch(block + b);
  }
}

template <class T, class Criterion>
void score_candidates(const ScoreBlocks<T>& score, int64_t begin, int64_t end, int64_t group,
                      void* memory) {
  constexpr int kCols = tile_cols<T>();
  const Scratch<T> scratch(score, memory);
  const int k = score.classes;
  const int64_t num_tiles = (score.num_evaluation + kCols - 1) / kCols;
  const int64_t planes = point_size(score), size = candidate_size(score);
  const int64_t first_tile = group * score.tiles_per_group;
  const int64_t last_tile = first_tile + score.tiles_per_group < num_tiles
                                ? first_tile + score.tiles_per_group
                                : num_tiles;
  for (int64_t c = begin; c < end; ++c) {
    const int count = score.candidate_rows[c];
    if (count == 0) continue;
    const T* first_row =
        score.covariance + (score.rows ? score.rows[c] : c) * k * score.covariance_stride;
    for (int64_t tile = first_tile; tile < last_tile; ++tile) {
      const int64_t x0 = tile * kCols;
      const int64_t cols = score.num_evaluation - x0 < kCols ? score.num_evaluation - x0 : kCols;
      Operand<T> row;
      row.data = first_row;
      row.row_stride = k;
      row.index = score.columns;
      for (int64_t a = 0; a < k; ++a, row.data += score.covariance_stride) {
        if (tile + 1 < last_tile) prefetch(row, x0 + kCols, score.num_evaluation, k);
        pack_rows<T>(row, x0, cols, 0, k, kCols, kCols, scratch.block + a * k * kCols);
      }
      const Pack<T> sum = score_tile<T, Criterion>(k, count, score.prepared_candidates + c * size,
                                                   score.points + tile * planes * kCols, scratch);
      score.partial[c * score.num_groups + group] += static_cast<double>(sum.sum());
    }
  }
}

template <class T>
void score_unit(const ScoreBlocks<T>& score, int64_t begin, int64_t end, int64_t group,
                void* memory) {
  visit_block(score.criterion, [&](auto criterion) {
    score_candidates<T, decltype(criterion)>(score, begin, end, group, memory);
  });
}

}  // namespace

#define NTKFAST_JOIN_(a, b) a##b
#define NTKFAST_JOIN(a, b) NTKFAST_JOIN_(a, b)

template <class T>
static constexpr ScoreBlocksKernels<T> score_blocks_kernels() {
  return {tile_cols<T>(),    point_size<T>,        candidate_size<T>, scratch_bytes<T>,
          prepare_points<T>, prepare_candidate<T>, score_unit<T>};
}
extern const ScoreBlocksKernels<float> NTKFAST_JOIN(kScoreBlocksFloat_, NTKFAST_ISA);
extern const ScoreBlocksKernels<double> NTKFAST_JOIN(kScoreBlocksDouble_, NTKFAST_ISA);
const ScoreBlocksKernels<float> NTKFAST_JOIN(kScoreBlocksFloat_,
                                             NTKFAST_ISA) = score_blocks_kernels<float>();
const ScoreBlocksKernels<double> NTKFAST_JOIN(kScoreBlocksDouble_,
                                              NTKFAST_ISA) = score_blocks_kernels<double>();

}  // namespace ntkfast
