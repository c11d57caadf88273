// Scoring on a GPU: prepare points and candidates, then covariance tile -> criterion -> sum over
// points, then the sum over groups of points. Every sum has a fixed order (no atomics), so results
// are bitwise reproducible.
//
// score_features and score_dense share everything here but where the covariance comes from; the
// tensor-core version of the pairwise kernel is in score_tensor.cuh.
#pragma once

#include "cuda/tile.cuh"

namespace ntkfast {
namespace {

/// Blocks wanted of a large call: several times what a GPU holds. Fixed, so that the order of every
/// sum is too.
constexpr int64_t kWantedBlocks = 1024;
/// Prepared arrays are padded to this many points, so that every tile of every kernel may read
/// whole rows.
constexpr int64_t kPadding = 128;

/// One call in compute type T. `points` and `prepared` hold element j of point or candidate i at [j
/// * ld + i].
template <class T>
struct ScoreArgs : ScoreInputs {
  const double* variance;  // of all points
  // Covariance: dense(c, x), if any, minus or plus the product of two factors.
  const T* dense;
  int64_t dense_stride;
  Factor<T> candidate_factor, evaluation_factor;
  int64_t depth;
  bool subtract;
  // Workspace.
  T* points;    // [1 + point_size][point_ld], first the weights
  T* prepared;  // [candidate_size][candidate_ld]
  int64_t point_ld, candidate_ld;
  int64_t tiles_per_group, num_groups;
  double* partial;  // [group][candidate_ld]
  double* utilities;
  int64_t wanted_blocks = kWantedBlocks;  // tests want fewer, and so several tiles per block
};

/// visit_scalar, for a GPU thread.
template <class Visitor>
NTKFAST_DEVICE void visit_on_device(int, Visitor&, CriterionList<>) {}
template <class Visitor, class First, class... Rest>
NTKFAST_DEVICE void visit_on_device(int index, Visitor& visitor, CriterionList<First, Rest...>) {
  if (index == 0) {
    visitor(Scalar<First>{});
  } else {
    visit_on_device(index - 1, visitor, CriterionList<Rest...>{});
  }
}

template <class T>
struct PreparePoint {
  const Settings& settings;
  const PointInputs& inputs;
  Prepared<T> out;
  template <class Criterion>
  NTKFAST_DEVICE void operator()(Criterion) const {
    Criterion::prepare_point(settings, inputs, out);
  }
};
template <class T>
struct PrepareCandidate {
  const Settings& settings;
  const CandidateInputs& inputs;
  Prepared<T> out;
  template <class Criterion>
  NTKFAST_DEVICE void operator()(Criterion) const {
    Criterion::prepare_candidate(settings, inputs, out);
  }
};
struct PreparedSizes {
  int k, point, candidate;
  template <class Criterion>
  NTKFAST_DEVICE void operator()(Criterion) {
    point = Criterion::point_size(k);
    candidate = Criterion::candidate_size(k);
  }
};

/// One thread per evaluation point; places beyond the last one get weight 0 and finite values.
template <class T>
struct PreparePoints {
  static constexpr int kThreads = 128;
  template <class Ctx>
  static NTKFAST_DEVICE void body(const Ctx& ctx, const ScoreArgs<T>& args) {
    const int64_t i = ctx.block_x() * kThreads + ctx.thread();
    if (i >= args.point_ld) return;
    T* out = args.points + i;
    const int64_t ld = args.point_ld, k = args.classes;
    if (i >= args.num_evaluation) {
      PreparedSizes sizes{args.classes, 0, 0};
      visit_on_device(args.criterion, sizes, Criteria{});
      for (int j = 0; j <= sizes.point; ++j) out[j * ld] = T(0);
      return;
    }
    const int64_t x = args.evaluation ? args.evaluation[i] : i;
    out[0] = static_cast<T>(args.weights[i]);
    const PointInputs inputs{args.mean + x * k, args.outputs + x * k,
                             args.targets ? args.targets + i * k : nullptr, args.variance[x],
                             args.covered ? args.covered[i] : 0.0};
    PreparePoint<T> prepare{args, inputs, Prepared<T>{out + ld, ld}};
    visit_on_device(args.criterion, prepare, Criteria{});
  }
};

/// One thread per candidate; whole tiles are copied, so places beyond the last one become zero.
template <class T>
struct PrepareCandidates {
  static constexpr int kThreads = 128;
  template <class Ctx>
  static NTKFAST_DEVICE void body(const Ctx& ctx, const ScoreArgs<T>& args) {
    const int64_t i = ctx.block_x() * kThreads + ctx.thread();
    if (i >= args.candidate_ld) return;
    if (i >= args.num_candidates) {
      PreparedSizes sizes{args.classes, 0, 0};
      visit_on_device(args.criterion, sizes, Criteria{});
      for (int j = 0; j < sizes.candidate; ++j) args.prepared[j * args.candidate_ld + i] = T(0);
      return;
    }
    const int64_t c = args.candidates ? args.candidates[i] : i, k = args.classes;
    const CandidateInputs inputs{args.mean + c * k, args.outputs + c * k, args.label_probs + i * k,
                                 args.variance[c], args.noise[i]};
    PrepareCandidate<T> prepare{args, inputs, Prepared<T>{args.prepared + i, args.candidate_ld}};
    visit_on_device(args.criterion, prepare, Criteria{});
  }
};

/// Element j of two neighbouring prepared points, or of a prepared candidate.
template <class Pointer, class Stride>
struct PointPair {
  Pointer first;
  Stride ld;
  NTKFAST_DEVICE auto operator()(int j) const { return load_pair(first + j * ld); }
};
template <class T, class Pointer, class Stride>
struct CandidateColumn {
  Pointer first;
  Stride ld;
  NTKFAST_DEVICE T operator()(int j) const { return first[j * ld]; }
};

/// The pairwise kernel without tensor cores, in float or double: the reference of the others and
/// the one for dense covariances. A block scores 64 candidates against one group of tiles of 64
/// points.
template <class T, class Criterion, int K>
struct ScorePairs {
  static constexpr int kThreads = kTileThreads;
  static constexpr int kTile = kTileSize;

  template <class Ctx>
  static NTKFAST_DEVICE void body(const Ctx& ctx, const ScoreArgs<T>& args) {
    const int row = Tile<T>::row(ctx.thread()), col = Tile<T>::col(ctx.thread());
    const int64_t c0 = ctx.block_x() * kTile, group = ctx.block_y();
    const int64_t num_tiles = div_up(args.num_evaluation, kTile);
    const int64_t end = min_of_index((group + 1) * args.tiles_per_group, num_tiles);
    double total[4] = {};
    for (int64_t t = group * args.tiles_per_group; t < end; ++t) {
      const int64_t x0 = t * kTile;
      Tile<T> tile;
      tile.clear();
      multiply_tile(ctx, args.depth, args.candidate_factor, c0, args.num_candidates,
                    args.evaluation_factor, x0, args.num_evaluation, tile);
      if (args.dense) add_dense(args, c0 + row, x0 + col, tile);
      NTKFAST_UNROLL_DEVICE
      for (int i = 0; i < 4; ++i) {
        const int64_t c = c0 + row + 16 * i;
        Pair<T> sum(T(0));
        if (c < args.num_candidates) {
          const CandidateColumn<T, const T*, int64_t> candidate{args.prepared + c,
                                                                args.candidate_ld};
          NTKFAST_UNROLL_DEVICE
          for (int j = 0; j < 2; ++j) {
            const int64_t x = x0 + col + 32 * j;
            if (x >= args.num_evaluation) continue;
            const T* first = args.points + x;
            const PointPair<const T*, int64_t> point{first + args.point_ld, args.point_ld};
            const Pair<T> value = Criterion::template value<K>(
                args.classes, tile.value[i][j], point, candidate, static_cast<Pair<T>*>(nullptr));
            sum = fma_of(load_pair(first), value, sum);
          }
        }
        total[i] += static_cast<double>(sum_lanes<16>(ctx, sum.v[0] + sum.v[1]));
      }
    }
    NTKFAST_UNROLL_DEVICE
    for (int i = 0; i < 4; ++i) {
      const int64_t c = c0 + row + 16 * i;
      if (col == 0 && c < args.num_candidates)
        args.partial[group * args.candidate_ld + c] = total[i];
    }
  }

 private:
  static NTKFAST_DEVICE int64_t min_of_index(int64_t a, int64_t b) { return a < b ? a : b; }

  static NTKFAST_DEVICE void add_dense(const ScoreArgs<T>& args, int64_t first_c, int64_t first_x,
                                       Tile<T>& tile) {
    NTKFAST_UNROLL_DEVICE
    for (int i = 0; i < 4; ++i) {
      const int64_t c = first_c + 16 * i;
      if (c >= args.num_candidates) continue;
      const int64_t offset = (args.candidates ? args.candidates[c] : c) * args.dense_stride;
      NTKFAST_UNROLL_DEVICE
      for (int j = 0; j < 2; ++j) {
        NTKFAST_UNROLL_DEVICE
        for (int lane = 0; lane < 2; ++lane) {
          const int64_t x = first_x + 32 * j + lane;
          if (x >= args.num_evaluation) continue;
          const int64_t place = offset + (args.evaluation ? args.evaluation[x] : x);
          T& value = tile.value[i][j].v[lane];
          value = args.subtract ? args.dense[place] - value : args.dense[place] + value;
        }
      }
    }
  }
};

/// utilities[c] = sum over the groups of points, in order; zero when there are none.
struct SumGroups {
  static constexpr int kThreads = 128;
  template <class Ctx, class T>
  static NTKFAST_DEVICE void body(const Ctx& ctx, const ScoreArgs<T>& args) {
    const int64_t c = ctx.block_x() * kThreads + ctx.thread();
    if (c >= args.num_candidates) return;
    double sum = 0;
    for (int64_t g = 0; g < args.num_groups; ++g) sum += args.partial[g * args.candidate_ld + c];
    args.utilities[c] = sum;
  }
};

// --- Drivers: the launches of one call, on whatever `launcher` runs them ---

struct ScoreSizes {
  int64_t points, prepared, partial;  // bytes, each a multiple of 256
  int64_t total() const { return points + prepared + partial; }
};

inline int64_t groups_of(int64_t num_candidates, int64_t num_evaluation, int tile,
                         int64_t wanted_blocks, int64_t* tiles_per_group) {
  const int64_t candidate_tiles = div_up(num_candidates, tile);
  const int64_t point_tiles = div_up(num_evaluation, tile);
  int64_t groups = div_up(wanted_blocks, candidate_tiles > 0 ? candidate_tiles : 1);
  groups = groups < point_tiles ? groups : point_tiles;
  *tiles_per_group = groups > 0 ? div_up(point_tiles, groups) : 0;
  return groups > 0 ? div_up(point_tiles, *tiles_per_group) : 0;
}

inline ScoreSizes score_sizes(int criterion, int64_t k, int64_t num_candidates,
                              int64_t num_evaluation, int element_bytes, int tile,
                              int64_t wanted_blocks = kWantedBlocks) {
  int64_t point_size = 0, candidate_size = 0, tiles_per_group = 0;
  visit_scalar(criterion, [&](auto c) {
    point_size = decltype(c)::point_size(static_cast<int>(k));
    candidate_size = decltype(c)::candidate_size(static_cast<int>(k));
  });
  const int64_t candidate_ld = round_to(num_candidates, kPadding);
  return {
      round_to((1 + point_size) * round_to(num_evaluation, kPadding) * element_bytes, 256),
      round_to(candidate_size * candidate_ld * element_bytes, 256),
      round_to(groups_of(num_candidates, num_evaluation, tile, wanted_blocks, &tiles_per_group) *
                   candidate_ld * int64_t{sizeof(double)},
               256)};
}

/// Fills the workspace part of `args`, which is score_sizes(...).total() bytes at `memory`.
template <class T>
void place_workspace(ScoreArgs<T>& args, void* memory, int tile) {
  const ScoreSizes sizes =
      score_sizes(args.criterion, args.classes, args.num_candidates, args.num_evaluation,
                  int{sizeof(T)}, tile, args.wanted_blocks);
  char* bytes = static_cast<char*>(memory);
  args.points = reinterpret_cast<T*>(bytes);
  args.prepared = reinterpret_cast<T*>(bytes + sizes.points);
  args.partial = reinterpret_cast<double*>(bytes + sizes.points + sizes.prepared);
  args.point_ld = round_to(args.num_evaluation, kPadding);
  args.candidate_ld = round_to(args.num_candidates, kPadding);
  args.num_groups = groups_of(args.num_candidates, args.num_evaluation, tile, args.wanted_blocks,
                              &args.tiles_per_group);
}

template <class Launcher, class T>
void launch_prepare(Launcher& launcher, const ScoreArgs<T>& args) {
  launcher.template run<PreparePoints<T>>({div_up(args.point_ld, 128), 1}, 0, args);
  launcher.template run<PrepareCandidates<T>>({div_up(args.candidate_ld, 128), 1}, 0, args);
}

template <class T, class Criterion, int K, class Launcher>
void launch_pairs(Launcher& launcher, const ScoreArgs<T>& args) {
  launcher.template run<ScorePairs<T, Criterion, K>>(
      {div_up(args.num_candidates, kTileSize), args.num_groups}, tile_shared_bytes<T>(), args);
}

/// Number of classes the kernels are unrolled for; every other number is a loop.
template <class Criterion, class Visitor>
void visit_classes(int k, Visitor&& visitor) {
  if constexpr (!has<Criterion>(kLookAhead)) {
    visitor(std::integral_constant<int, 1>{});  // classes play no part
  } else if (k == 2) {
    visitor(std::integral_constant<int, 2>{});
  } else if (k == 10) {
    visitor(std::integral_constant<int, 10>{});
  } else {
    visitor(std::integral_constant<int, kAnyClasses>{});
  }
}

/// The whole call with the reference kernel. `args` lacks its workspace.
template <class Launcher, class T>
void launch_score(Launcher& launcher, ScoreArgs<T> args, void* workspace) {
  if (args.num_candidates == 0) return;
  place_workspace(args, workspace, kTileSize);
  if (args.num_evaluation > 0) {
    launch_prepare(launcher, args);
    visit_scalar(args.criterion, [&](auto criterion) {
      using Criterion = decltype(criterion);
      if constexpr (std::is_same<T, double>::value && has<Criterion>(kLookAhead)) {
        launch_pairs<T, Criterion, kAnyClasses>(launcher, args);
      } else {
        visit_classes<Criterion>(args.classes, [&](auto classes) {
          launch_pairs<T, Criterion, decltype(classes)::value>(launcher, args);
        });
      }
    });
  }
  launcher.template run<SumGroups>({div_up(args.num_candidates, 128), 1}, 0, args);
}

}  // namespace
}  // namespace ntkfast
