// Fused scoring for one instruction set: covariance tile -> criterion -> sum. Compiled once per
// instruction set with NTKFAST_ISA naming it; see kernels.h.
#include "cpu/gemm_tile.h"
#include "cpu/kernels.h"
#include "math/scalar_criteria.h"

namespace ntkfast {
namespace {

template <class T>
struct PlaneLane {  // element j of the prepared points under one register of lanes
  const T* first;
  NTKFAST_INLINE Pack<T> operator()(int j) const { return Pack<T>::load(first + j * kTileCols); }
};

template <class T>
struct RowScalar {  // element j of a prepared candidate
  const T* first;
  NTKFAST_INLINE T operator()(int j) const { return first[j]; }
};

template <class T>
int64_t point_size(const Score<T>& score) {
  int size = 0;
  visit_scalar(score.criterion, [&](auto c) { size = decltype(c)::point_size(score.classes); });
  return 1 + size;
}

template <class T>
int64_t candidate_size(const Score<T>& score) {
  int size = 0;
  visit_scalar(score.criterion, [&](auto c) { size = decltype(c)::candidate_size(score.classes); });
  return size;
}

/// Scratch of one thread: the packed evaluation points of a tile, the covariance tile, k-vectors of
/// the criterion.
template <class T>
struct Scratch {
  T* right;
  T* tile;
  Pack<T>* labels;
  int64_t bytes;
  Scratch(const Score<T>& score, void* memory) {
    const int64_t right_size = round_up(score.depth * kTileCols, 64);
    const int64_t tile_size = round_up(int64_t{kTileRows} * kTileCols, 64);
    right = static_cast<T*>(memory);
    tile = right + right_size;
    labels = reinterpret_cast<Pack<T>*>(tile + tile_size);
    bytes = (right_size + tile_size) * int64_t{sizeof(T)} +
            2 * score.classes * int64_t{sizeof(Pack<T>)};
  }
};

template <class T>
int64_t scratch_bytes(const Score<T>& score) {
  return Scratch<T>(score, nullptr).bytes;
}

template <class T>
void prepare_points(const Score<T>& score, int64_t x_tile) {
  const int64_t planes = point_size(score), k = score.classes;
  T* panel = score.points + x_tile * planes * kTileCols;
  for (int64_t i = 0; i < planes * kTileCols; ++i) panel[i] = T(0);
  for (int64_t lane = 0; lane < kTileCols; ++lane) {
    const int64_t i = x_tile * kTileCols + lane;
    if (i >= score.num_evaluation)
      break;  // lanes beyond the last point have weight 0 and finite values
    const int64_t x = score.evaluation[i];
    panel[lane] = static_cast<T>(score.weights[i]);
    const PointInputs inputs{score.mean + x * k, score.outputs + x * k,
                             score.targets ? score.targets + i * k : nullptr, score.variance[x],
                             score.covered ? score.covered[i] : 0.0};
    const Prepared<T> out{panel + kTileCols + lane, kTileCols};
    visit_scalar(score.criterion, [&](auto c) { decltype(c)::prepare_point(score, inputs, out); });
  }
}

template <class T>
void prepare_candidates(const Score<T>& score, int64_t begin, int64_t end) {
  const int64_t size = candidate_size(score), k = score.classes;
  for (int64_t i = begin; i < end; ++i) {
    const int64_t c = score.candidates[i];
    const CandidateInputs inputs{score.mean + c * k, score.outputs + c * k,
                                 score.label_probs + i * k, score.variance[c], score.noise[i]};
    const Prepared<T> out{score.prepared_candidates + i * size, 1};
    visit_scalar(score.criterion,
                 [&](auto c_) { decltype(c_)::prepare_candidate(score, inputs, out); });
  }
}

template <class T>
void pack_candidates(const Score<T>& score, int64_t c_tile) {
  const int64_t first = c_tile * kTileRows;
  const int64_t left = score.chunk_rows - first;
  const int64_t count = left < kTileRows ? left : kTileRows;
  pack_rows<T>(score.candidate_factor, score.chunk_begin + first, count, 0, score.depth, kPanelRows,
               round_up(count, kPanelRows), score.packed_candidates + first * score.depth);
}

/// Sums the criterion over the tile's evaluation points, for each of `rows` candidates.
template <class T, class Criterion, int K>
void score_tile(const Score<T>& score, int64_t first, int64_t rows, const T* points, const T* tile,
                Pack<T>* labels, int64_t group) {
  using V = Pack<T>;
  const int64_t size = Criterion::candidate_size(score.classes);
  for (int64_t r = 0; r < rows; ++r) {
    const RowScalar<T> candidate{score.prepared_candidates + (first + r) * size};
    V sum(T(0));
    for (int lane = 0; lane < kTileCols; lane += V::kLanes) {
      const V S = V::load(tile + r * kTileCols + lane);
      const PlaneLane<T> point{points + kTileCols + lane};
      const V value = Criterion::template value<K>(score.classes, S, point, candidate, labels);
      sum = fma_of(V::load(points + lane), value, sum);
    }
    score.partial[(first + r) * score.num_groups + group] += static_cast<double>(sum.sum());
  }
}

template <class T>
void score_tile(const Score<T>& score, int64_t first, int64_t rows, const T* points, const T* tile,
                Pack<T>* labels, int64_t group) {
  visit_scalar(score.criterion, [&](auto c) {
    using Criterion = decltype(c);
    // Two and ten classes are unrolled; a loop over the labels serves every other number.
    if constexpr (has<Criterion>(kLookAhead)) {
      if (score.classes == 2)
        return score_tile<T, Criterion, 2>(score, first, rows, points, tile, labels, group);
      if (score.classes == 10)
        return score_tile<T, Criterion, 10>(score, first, rows, points, tile, labels, group);
    }
    score_tile<T, Criterion, 0>(score, first, rows, points, tile, labels, group);
  });
}

template <class T>
void score_unit(const Score<T>& score, int64_t segment, int64_t group, void* memory) {
  const Scratch<T> scratch(score, memory);
  const int64_t begin = segment * score.rows_per_segment;
  const int64_t end = begin + score.rows_per_segment < score.chunk_rows
                          ? begin + score.rows_per_segment
                          : score.chunk_rows;
  const int64_t num_tiles = (score.num_evaluation + kTileCols - 1) / kTileCols;
  const int64_t planes = point_size(score);
  for (int64_t t = 0; t < score.tiles_per_group; ++t) {
    const int64_t x_tile = group * score.tiles_per_group + t;
    if (x_tile >= num_tiles) break;
    const int64_t x0 = x_tile * kTileCols;
    const int64_t cols =
        score.num_evaluation - x0 < kTileCols ? score.num_evaluation - x0 : kTileCols;
    if (score.depth > 0)
      pack_rows<T>(score.evaluation_factor, x0, cols, 0, score.depth, panel_cols<T>(), kTileCols,
                   scratch.right);
    for (int64_t r0 = begin; r0 < end; r0 += kTileRows) {
      const int64_t rows = end - r0 < kTileRows ? end - r0 : kTileRows;
      const int64_t padded = round_up(rows, kPanelRows);
      const int64_t first = score.chunk_begin + r0;
      for (int64_t r = 0; r < padded; ++r) {
        T* row = scratch.tile + r * kTileCols;
        int64_t j = 0;
        if (score.dense && r < rows) {
          const T* source = score.dense + score.candidates[first + r] * score.dense_stride;
          for (; j < cols; ++j) row[j] = source[score.evaluation[x0 + j]];
        }
        for (; j < kTileCols; ++j) row[j] = T(0);
      }
      if (score.depth > 0)
        multiply_tile(score.depth, padded, score.packed_candidates + r0 * score.depth,
                      scratch.right, scratch.tile);
      score_tile(score, first, rows, score.points + x_tile * planes * kTileCols, scratch.tile,
                 scratch.labels, group);
    }
  }
}

}  // namespace

#define NTKFAST_JOIN_(a, b) a##b
#define NTKFAST_JOIN(a, b) NTKFAST_JOIN_(a, b)

template <class T>
static constexpr ScoreKernels<T> score_kernels() {
  return {point_size<T>,         candidate_size<T>,  scratch_bytes<T>, prepare_points<T>,
          prepare_candidates<T>, pack_candidates<T>, score_unit<T>};
}
extern const ScoreKernels<float> NTKFAST_JOIN(kScoreFloat_, NTKFAST_ISA);
extern const ScoreKernels<double> NTKFAST_JOIN(kScoreDouble_, NTKFAST_ISA);
const ScoreKernels<float> NTKFAST_JOIN(kScoreFloat_, NTKFAST_ISA) = score_kernels<float>();
const ScoreKernels<double> NTKFAST_JOIN(kScoreDouble_, NTKFAST_ISA) = score_kernels<double>();

}  // namespace ntkfast
