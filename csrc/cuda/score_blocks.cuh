// Scoring of a matrix-valued kernel on a GPU, by the criteria of math/block_criteria.h: a warp
// takes a candidate and a group of evaluation points, a lane one of the points.
//
// The covariances of a candidate come output by output: S(c, x)_ab in row a, with output b of all
// evaluation points side by side. So lanes read side by side whatever k is. A lane forms the rows
// l = start(x) + S(x, c) z four at a time, and a number of them whenever a criterion asks for it:
// the block is read again from the caches, and nothing of the size of k is kept, except for what
// the criteria of whole pairs work on, which lies in the workspace.
#pragma once

#include "cuda/score.cuh"
#include "math/block_criteria.h"

namespace ntkfast {
namespace {

constexpr int kBlockWarp = 32;
/// Warps of ScoreUnrolledBlocks on a multiprocessor at a time.
#if defined(NTKFAST_UNROLLED_BLOCKS)
constexpr int kUnrolledBlocks = NTKFAST_UNROLLED_BLOCKS;
#else
constexpr int kUnrolledBlocks = 12;
#endif
/// Rows of a candidate that a lane forms at a time.
constexpr int kRowLanes = 4;
/// Bytes that all threads together may have to work on; with many classes fewer of them run.
constexpr int64_t kBlockScratch = int64_t{1} << 28;

/// How a call is cut up, and the bytes of the parts of its workspace, each a multiple of 256.
struct BlockPlan {
  int64_t point_planes, candidate_size;  // numbers of a prepared point, of a prepared candidate
  int64_t work_bytes;                    // of a thread that prepares
  int64_t pair_values;                   // numbers of a lane that a pair is worked on in
  int64_t tiles_per_group, num_groups;
  int64_t point_blocks, candidate_blocks, pair_blocks;  // of threads; the last for each group
  int64_t points, prepared, counts, partial, scratch;
  int64_t total() const { return points + prepared + counts + partial + scratch; }
};

inline BlockPlan plan_blocks(int criterion, int64_t k, int64_t num_candidates,
                             int64_t num_evaluation, int element_bytes,
                             int64_t wanted_blocks = kWantedBlocks,
                             int64_t scratch_bytes = kBlockScratch) {
  BlockPlan plan{};
  plan.point_planes = 1;
  visit_block(criterion, [&](auto c) {
    using Criterion = decltype(c);
    const int classes = static_cast<int>(k);
    plan.point_planes += Criterion::point_size(classes);
    if constexpr (!Criterion::kRowwise) plan.pair_values = k * k + Criterion::scratch_size(classes);
  });
  const auto limited = [&](int64_t blocks, int64_t block_bytes) {
    const int64_t most = block_bytes > 0 ? scratch_bytes / block_bytes : blocks;
    return blocks <= most ? blocks : most > 1 ? most : 1;
  };
  // Rows, in fours; their weights; two further numbers and two to keep them aligned.
  plan.candidate_size = round_to(k, kRowLanes) * (k + 1) + 4;
  plan.work_bytes =
      round_to(k * (2 * k + 1) * int64_t{sizeof(double)} + (k * (k + 1) + 2) * element_bytes, 16);
  plan.point_blocks = limited(div_up(num_evaluation, kBlockWarp), kBlockWarp * plan.work_bytes);
  plan.candidate_blocks = limited(div_up(num_candidates, kBlockWarp), kBlockWarp * plan.work_bytes);
  const int64_t pair_bytes = kBlockWarp * plan.pair_values * element_bytes;
  const int64_t most = limited(wanted_blocks, pair_bytes);
  plan.num_groups =
      groups_of(num_candidates, num_evaluation, {1, kBlockWarp}, most, &plan.tiles_per_group);
  const int64_t groups = plan.num_groups > 0 ? plan.num_groups : 1;
  plan.pair_blocks = limited(num_candidates, groups * pair_bytes);
  plan.points =
      round_to(plan.point_planes * round_to(num_evaluation, kBundle) * element_bytes, 256);
  plan.prepared = round_to(plan.candidate_size * num_candidates * element_bytes, 256);
  plan.counts = round_to(num_candidates * int64_t{sizeof(int32_t)}, 256);
  plan.partial = round_to(groups * num_candidates * int64_t{sizeof(double)}, 256);
  int64_t largest = plan.pair_blocks * groups * pair_bytes;
  for (const int64_t blocks : {plan.point_blocks, plan.candidate_blocks}) {
    const int64_t bytes = blocks * kBlockWarp * plan.work_bytes;
    largest = bytes > largest ? bytes : largest;
  }
  plan.scratch = round_to(largest, 256);
  return plan;
}

/// One call in compute type T.
template <class T>
struct BlockArgs : ScoreInputs {
  const T* covariance;  // (N_c k, k N_x): row c k + a, column b N_x + x
  int64_t covariance_stride;
  const double *variance, *evaluation_variance;  // (N_c, k, k); (N_x, k, k) or null
  double* utilities;
  int64_t* wrong;  // (N_c + N_x): 1 where a block plus its noise is not positive definite
  T *points, *prepared;
  int32_t* counts;  // rows of a candidate
  double* partial;  // [group][candidate]
  unsigned char* scratch;
  int64_t point_planes, candidate_size, work_bytes, pair_values;
  int64_t padded_candidates, padded_points, tiles_per_group, num_groups;
};

/// visit_block, for a GPU thread.
template <class Visitor>
NTKFAST_DEVICE void visit_block_on_device(int, Visitor&, CriterionList<>) {}
template <class Visitor, class First, class... Rest>
NTKFAST_DEVICE void visit_block_on_device(int index, Visitor& visitor,
                                          CriterionList<First, Rest...>) {
  if (index == 0) {
    if constexpr (!has<First>(kReadsCovered)) visitor(Block<First>{});
  } else {
    visit_block_on_device(index - 1, visitor, CriterionList<Rest...>{});
  }
}

template <class T>
struct PrepareBlockPoint {
  const Settings& settings;
  const BlockPoint& inputs;
  double* work;
  Prepared<T> out;
  bool right;
  template <class Criterion>
  NTKFAST_DEVICE void operator()(Criterion) {
    right = Criterion::prepare_point(settings, inputs, work, out);
  }
};
template <class T>
struct PrepareBlockCandidate {
  const Settings& settings;
  const BlockCandidate& inputs;
  CandidateRows<T> out;
  int count;
  template <class Criterion>
  NTKFAST_DEVICE void operator()(Criterion) {
    count = Criterion::prepare_candidate(settings, inputs, out);
  }
};

/// One thread per evaluation point; places beyond the last one get weight 0 and finite values. A
/// wrong one makes every utility NaN.
template <class T>
struct PrepareBlockPoints {
  static constexpr int kThreads = kBlockWarp;
  template <class Ctx>
  static NTKFAST_DEVICE void body(const Ctx& ctx, const BlockArgs<T>& args) {
    const int64_t first = ctx.block_x() * kThreads + ctx.thread(), k = args.classes;
    double* work = reinterpret_cast<double*>(args.scratch + first * args.work_bytes);
    for (int64_t i = first; i < args.padded_points; i += ctx.grid_x() * kThreads) {
      T* out = args.points + bundle_place(i, static_cast<int>(args.point_planes));
      if (i >= args.num_evaluation) {
        for (int64_t j = 0; j < args.point_planes; ++j) out[j * kBundle] = T(0);
        continue;
      }
      const int64_t x = args.evaluation ? args.evaluation[i] : i;
      const BlockPoint inputs{
          {args.mean + x * k, args.outputs + x * k, args.targets ? args.targets + i * k : nullptr,
           0.0, 0.0},
          args.evaluation_variance ? args.evaluation_variance + i * k * k : nullptr};
      PrepareBlockPoint<T> prepare{args, inputs, work, Prepared<T>{out + kBundle, kBundle}, true};
      visit_block_on_device(args.criterion, prepare, Criteria{});
      out[0] = prepare.right ? static_cast<T>(args.weights[i]) : static_cast<T>(NAN);
      args.wrong[args.num_candidates + i] = !prepare.right;
    }
  }
};

/// One thread per candidate: its rows, four and four side by side, zeros beyond the last one.
template <class T>
struct PrepareBlockCandidates {
  static constexpr int kThreads = kBlockWarp;
  template <class Ctx>
  static NTKFAST_DEVICE void body(const Ctx& ctx, const BlockArgs<T>& args) {
    const int64_t first = ctx.block_x() * kThreads + ctx.thread(), k = args.classes;
    double* work = reinterpret_cast<double*>(args.scratch + first * args.work_bytes);
    T* rows = reinterpret_cast<T*>(work + k * (2 * k + 1));
    for (int64_t i = first; i < args.num_candidates; i += ctx.grid_x() * kThreads) {
      const int64_t c = args.candidates ? args.candidates[i] : i;
      const BlockCandidate inputs{
          {args.mean + c * k, args.outputs + c * k, args.label_probs + i * k, 0.0, args.noise[i]},
          args.variance + i * k * k};
      PrepareBlockCandidate<T> prepare{
          args, inputs, CandidateRows<T>{rows, rows + k * k, rows + k * (k + 1), work}, 0};
      prepare.out.further[0] = prepare.out.further[1] = T(0);
      visit_block_on_device(args.criterion, prepare, Criteria{});
      args.counts[i] = prepare.count;
      args.wrong[i] = prepare.count < 0;
      T* out = args.prepared + i * args.candidate_size;
      const int64_t padded = round_to(k, kRowLanes);
      for (int64_t row = 0; row < padded; ++row) {
        T* z = out + row / kRowLanes * kRowLanes * k + row % kRowLanes;
        for (int64_t a = 0; a < k; ++a)
          z[a * kRowLanes] = row < prepare.count ? rows[row * k + a] : T(0);
        out[padded * k + row] = row < prepare.count ? prepare.out.weights[row] : T(0);
      }
      for (int j = 0; j < 2; ++j) out[padded * (k + 1) + j] = prepare.out.further[j];
    }
  }
};

template <class T>
NTKFAST_DEVICE Lanes<T, kRowLanes> load_rows(const T* p) {
  return *reinterpret_cast<const Lanes<T, kRowLanes>*>(p);
}

/// Element j of a prepared point, for all rows.
template <class T, class V>
struct BlockPlane {
  const T* first;
  NTKFAST_DEVICE V operator()(int j) const { return V(first[j * kBundle]); }
};

/// So that infinities do not meet.
template <class T, int N>
NTKFAST_DEVICE Lanes<T, N> bounded_row(Lanes<T, N> l) {
  using V = Lanes<T, N>;
  return max_of(min_of(l, V(-logit_floor<T>())), V(logit_floor<T>()));
}

/// Number b of four rows of a pair.
template <class T, bool kStarts>
struct BlockRow {
  using V = Lanes<T, kRowLanes>;
  const T *S, *z, *start;
  int64_t down, across;  // from S_ab to the next a, to the next b
  int k;
  NTKFAST_DEVICE V operator()(int b) const {
    V sum(T(0));
    if constexpr (kStarts) sum = V(start[b * kBundle]);
    const T* column = S + b * across;
    for (int a = 0; a < k; ++a, column += down)
      sum = fma_of(load_rows(z + a * kRowLanes), V(*column), sum);
    return bounded_row(sum);
  }
};

/// A lane's part of the scratch of a warp.
template <class T>
struct LaneMemory {
  T* first;
  NTKFAST_DEVICE T& operator[](int64_t i) const { return first[i * kBlockWarp]; }
  NTKFAST_DEVICE LaneMemory operator+(int64_t i) const { return {first + i * kBlockWarp}; }
};
template <class T>
struct LaneGrid {
  LaneMemory<T> memory;
  int64_t k;
  NTKFAST_DEVICE T load(int i, int j) const { return memory[i * k + j]; }
  NTKFAST_DEVICE void store(int i, int j, T value) const { memory[i * k + j] = value; }
};
template <class T>
struct BlockFurther {
  const T* first;
  NTKFAST_DEVICE T operator()(int j) const { return first[j]; }
};

/// What a candidate is worth to the point of a lane.
template <class T>
struct ScoreBlockPair {
  const BlockArgs<T>& args;
  int count;
  const T *candidate, *point, *S;
  LaneMemory<T> memory;
  T value;
  template <class Criterion>
  NTKFAST_DEVICE void operator()(Criterion) {
    using V = Lanes<T, kRowLanes>;
    const int k = args.classes;
    const int64_t padded = round_to(k, kRowLanes);
    BlockRow<T, Criterion::kStarts> row{
        S, candidate, point, args.covariance_stride, args.num_evaluation, k};
    if constexpr (Criterion::kRowwise) {
      V sum(T(0));
      for (int i = 0; i < count; i += kRowLanes, row.z += kRowLanes * k)
        sum = fma_of(load_rows(candidate + padded * k + i),
                     Criterion::template row_value<V>(k, row, BlockPlane<T, V>{point}), sum);
      value = (sum.v[0] + sum.v[1]) + (sum.v[2] + sum.v[3]);
    } else {
      const LaneGrid<T> rows{memory, k};
      for (int i = 0; i < k; i += kRowLanes, row.z += kRowLanes * k)
        for (int b = 0; b < k; ++b) {
          const V l = row(b);
          NTKFAST_UNROLL_DEVICE
          for (int lane = 0; lane < kRowLanes; ++lane)
            if (i + lane < k) rows.store(i + lane, b, l.v[lane]);
        }
      value = Criterion::template pair_value<T>(k, rows, BlockPlane<T, T>{point},
                                                BlockFurther<T>{candidate + padded * (k + 1)},
                                                memory + int64_t{k} * k);
    }
  }
};

template <class T>
struct ScoreBlockPairs {
  static constexpr int kThreads = kBlockWarp;
  /// As many as there are registers for, without spilling any.
  static constexpr int kResidentBlocks = sizeof(T) > 4 ? 8 : 16;
  static_assert(kBundle % kBlockWarp == 0, "a tile lies in one bundle");
  template <class Ctx>
  static NTKFAST_DEVICE void body(const Ctx& ctx, const BlockArgs<T>& args) {
    const int lane = ctx.thread();
    const int64_t group = ctx.block_y(), k = args.classes;
    const int64_t num_tiles = div_up(args.num_evaluation, kBlockWarp);
    const int64_t begin = group * args.tiles_per_group, stop = begin + args.tiles_per_group;
    const int64_t end = stop < num_tiles ? stop : num_tiles;
    const int64_t warp = group * ctx.grid_x() + ctx.block_x();
    const LaneMemory<T> memory{reinterpret_cast<T*>(args.scratch) +
                               warp * kBlockWarp * args.pair_values + lane};
    for (int64_t c = ctx.block_x(); c < args.num_candidates; c += ctx.grid_x()) {
      const int count = args.counts[c];
      double total = count < 0 ? static_cast<double>(NAN) : 0.0;
      for (int64_t t = begin; t < end && count > 0; ++t) {
        const int64_t i = t * kBlockWarp + lane;
        const int64_t x = i < args.num_evaluation ? i : args.num_evaluation - 1;
        const T* point = args.points + bundle_place(i, static_cast<int>(args.point_planes));
        ScoreBlockPair<T> pair{args,
                               count,
                               args.prepared + c * args.candidate_size,
                               point + kBundle,
                               args.covariance + c * k * args.covariance_stride + x,
                               memory,
                               T(0)};
        visit_block_on_device(args.criterion, pair, Criteria{});
        total += static_cast<double>(point[0]) * static_cast<double>(pair.value);
      }
      total = sum_lanes<kBlockWarp>(ctx, total);
      if (lane == 0) args.partial[group * args.padded_candidates + c] = total;
    }
  }
};

/// Two rows of a pair, in registers, which only loops that are unrolled may ask for.
template <class T, int K>
struct UnrolledRow {
  Pair<T> l[K];
  NTKFAST_DEVICE Pair<T> operator()(int b) const { return l[b]; }
};

/// As ScoreBlockPairs, for K outputs: a lane asks for the whole block of a pair at once and keeps
/// it. Otherwise it waits K^2 / 4 times for memory, and for the first-level cache at every product.
template <class T, class Criterion, int K>
struct ScoreUnrolledBlocks {
  static constexpr int kThreads = kBlockWarp;
  /// As many as there are registers for, without spilling any.
  static constexpr int kResidentBlocks = Criterion::kRowwise ? kUnrolledBlocks : 8;
  static constexpr int kPadded = (K + kRowLanes - 1) / kRowLanes * kRowLanes;
  template <class Ctx>
  static NTKFAST_DEVICE void body(const Ctx& ctx, const BlockArgs<T>& args) {
    const int lane = ctx.thread();
    const int64_t group = ctx.block_y(), num_tiles = div_up(args.num_evaluation, kBlockWarp);
    const int64_t begin = group * args.tiles_per_group, stop = begin + args.tiles_per_group;
    const int64_t end = stop < num_tiles ? stop : num_tiles;
    for (int64_t c = ctx.block_x(); c < args.num_candidates; c += ctx.grid_x()) {
      const int count = args.counts[c];
      const T* candidate = args.prepared + c * args.candidate_size;
      double total = count < 0 ? static_cast<double>(NAN) : 0.0;
      NTKFAST_KEEP_LOOP
      for (int64_t t = begin; t < end && count > 0; ++t) {
        const int64_t i = t * kBlockWarp + lane;
        const int64_t x = i < args.num_evaluation ? i : args.num_evaluation - 1;
        const T* point = args.points + bundle_place(i, 1 + Criterion::point_size(K));
        T S[K][K];
        const T* down = args.covariance + c * K * args.covariance_stride + x;
        NTKFAST_UNROLL_DEVICE
        for (int a = 0; a < K; ++a, down += args.covariance_stride) {
          const T* across = down;
          NTKFAST_UNROLL_DEVICE
          for (int b = 0; b < K; ++b, across += args.num_evaluation) S[a][b] = *across;
        }
        total += static_cast<double>(point[0]) *
                 static_cast<double>(value_of(S, count, candidate, point + kBundle));
      }
      total = sum_lanes<kBlockWarp>(ctx, total);
      if (lane == 0) args.partial[group * args.padded_candidates + c] = total;
    }
  }

 private:
  /// Rows r and r + 1 of the pair.
  static NTKFAST_DEVICE UnrolledRow<T, K> rows_of(const T (&S)[K][K], int r, const T* candidate,
                                                  const T* point) {
    const T* z = candidate + r / kRowLanes * kRowLanes * K + r % kRowLanes;
    UnrolledRow<T, K> row;
    NTKFAST_UNROLL_DEVICE
    for (int b = 0; b < K; ++b) row.l[b] = Pair<T>(Criterion::kStarts ? point[b * kBundle] : T(0));
    NTKFAST_UNROLL_DEVICE
    for (int a = 0; a < K; ++a) {
      const Pair<T> factor = load_pair(z + a * kRowLanes);
      NTKFAST_UNROLL_DEVICE
      for (int b = 0; b < K; ++b) row.l[b] = fma_of(factor, Pair<T>(S[a][b]), row.l[b]);
    }
    NTKFAST_UNROLL_DEVICE
    for (int b = 0; b < K; ++b) row.l[b] = bounded_row(row.l[b]);
    return row;
  }
  static NTKFAST_DEVICE T value_of(const T (&S)[K][K], int count, const T* candidate,
                                   const T* point) {
    if constexpr (Criterion::kRowwise) {
      Pair<T> sum(T(0));
      NTKFAST_KEEP_LOOP
      for (int r = 0; r < count; r += 2)
        sum = fma_of(load_pair(candidate + kPadded * K + r),
                     Criterion::template row_value<Pair<T>>(K, rows_of(S, r, candidate, point),
                                                            BlockPlane<T, Pair<T>>{point}),
                     sum);
      return sum.v[0] + sum.v[1];
    } else {
      // M^T two rows at a time, each of which adds to U = M M^T at once. There are K of them, and
      // zeros beyond.
      constexpr int kTriangle = K * (K + 1) / 2;
      T U[kTriangle], inverse[K], scaled[K];
      NTKFAST_UNROLL_DEVICE
      for (int e = 0; e < kTriangle; ++e) U[e] = T(0);
      NTKFAST_KEEP_LOOP
      for (int r = 0; r < K; r += 2) {
        const UnrolledRow<T, K> row = rows_of(S, r, candidate, point);
        Pair<T> M[K];
        NTKFAST_UNROLL_DEVICE
        for (int j = 0; j < K; ++j) {
          M[j] = Pair<T>(T(0));
          NTKFAST_UNROLL_DEVICE
          for (int b = 0; b <= j; ++b)
            M[j] = fma_of(row.l[b], Pair<T>(point[(j * (j + 1) / 2 + b) * kBundle]), M[j]);
          NTKFAST_UNROLL_DEVICE
          for (int m = 0; m <= j; ++m)
            U[j * (j + 1) / 2 + m] =
                fma_of(M[j].v[1], M[m].v[1], fma_of(M[j].v[0], M[m].v[0], U[j * (j + 1) / 2 + m]));
        }
      }
      return Criterion::template value_of_product<K, T>(
          K, U, BlockPlane<T, T>{point}, BlockFurther<T>{candidate + kPadded * (K + 1)}, inverse,
          scaled);
    }
  }
};

/// The kernel of the pairs. Ten outputs in float have one of their own.
template <class Launcher, class T>
void launch_block_pairs(Launcher& launcher, Grid grid, const BlockArgs<T>& args) {
  if constexpr (sizeof(T) == 4) {
    if (args.classes == 10) {
      visit_block(args.criterion, [&](auto criterion) {
        launcher.template run<ScoreUnrolledBlocks<T, decltype(criterion), 10>>(grid, 0, args);
      });
      return;
    }
  }
  launcher.template run<ScoreBlockPairs<T>>(grid, 0, args);
}

/// The whole call. `args` lacks its workspace, which is plan.total() bytes at `memory`.
template <class Launcher, class T>
void launch_score_blocks(Launcher& launcher, BlockArgs<T> args, const BlockPlan& plan,
                         void* memory) {
  unsigned char* bytes = static_cast<unsigned char*>(memory);
  const auto part = [&](int64_t size) { return (bytes += size) - size; };
  args.points = reinterpret_cast<T*>(part(plan.points));
  args.prepared = reinterpret_cast<T*>(part(plan.prepared));
  args.counts = reinterpret_cast<int32_t*>(part(plan.counts));
  args.partial = reinterpret_cast<double*>(part(plan.partial));
  args.scratch = bytes;
  args.point_planes = plan.point_planes;
  args.candidate_size = plan.candidate_size;
  args.work_bytes = plan.work_bytes;
  args.pair_values = plan.pair_values;
  args.padded_candidates = args.num_candidates;
  args.padded_points = round_to(args.num_evaluation, kBundle);
  args.tiles_per_group = plan.tiles_per_group;
  args.num_groups = plan.num_groups;
  launcher.template run<PrepareBlockPoints<T>>({plan.point_blocks, 1}, 0, args);
  launcher.template run<PrepareBlockCandidates<T>>({plan.candidate_blocks, 1}, 0, args);
  launch_block_pairs(launcher, {plan.pair_blocks, plan.num_groups}, args);
  launcher.template run<SumGroups>({div_up(args.num_candidates, 128), 1}, 0, args);
}

}  // namespace
}  // namespace ntkfast
