// Scoring on a GPU: prepare points and candidates, then covariance tile -> criterion -> sum over
// points, then the sum over groups of points. Every sum has a fixed order (no atomics), so results
// are bitwise reproducible.
//
// score_features and score_dense share everything here but where the covariance comes from; the
// tensor-core version of the pairwise kernel is in score_tensor.cuh.
#pragma once

#include "cuda/score_products.h"
#include "cuda/tile.cuh"

namespace ntkfast {
namespace {

/// Blocks wanted of a large call: so many that the last of them leave a GPU idle for a few percent
/// of the time only. Fixed, so that the order of every sum is too.
constexpr int64_t kWantedBlocks = 4096;
/// Prepared arrays are padded to whole bundles of points, and no tile of a kernel crosses from one
/// into the next.
constexpr int kBundle = 128;

/// Where element 0 of point or candidate i lies in an array of `planes` numbers of each: those of a
/// bundle lie together, element j of all of them before element j + 1. The distance between
/// elements is then kBundle, however many points there are.
NTKFAST_HD inline int64_t bundle_place(int64_t i, int planes) {
  return i / kBundle * planes * kBundle + i % kBundle;
}

/// What is prepared of a candidate may lie differently: its first numbers in planes, the others
/// side by side, those of a bundle's candidates one after the other.
constexpr int kCandidatePlanes = 2;

/// One call in compute type T.
template <class T>
struct ScoreArgs : PrepareArgs<T> {
  // Covariance: dense(c, x), if any, minus or plus the product of two factors.
  const T* dense;
  int64_t dense_stride;
  Factor<T> candidate_factor, evaluation_factor;
  int64_t depth;
  bool subtract;
  int64_t tiles_per_group, num_groups;
  double* partial;  // [group][padded_candidates]
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
  static NTKFAST_DEVICE void body(const Ctx& ctx, const PrepareArgs<T>& args) {
    const int64_t i = ctx.block_x() * kThreads + ctx.thread();
    if (i >= args.padded_points) return;
    PreparedSizes sizes{args.classes, 0, 0};
    visit_on_device(args.criterion, sizes, Criteria{});
    T* out = args.points + bundle_place(i, 1 + sizes.point);
    if (i >= args.num_evaluation) {
      for (int j = 0; j <= sizes.point; ++j) out[j * kBundle] = T(0);
      return;
    }
    const int64_t x = args.evaluation ? args.evaluation[i] : i, k = args.classes;
    out[0] = static_cast<T>(args.weights[i]);
    const PointInputs inputs{args.mean + x * k, args.outputs + x * k,
                             args.targets ? args.targets + i * k : nullptr, args.variance[x],
                             args.covered ? args.covered[i] : 0.0};
    PreparePoint<T> prepare{args, inputs, Prepared<T>{out + kBundle, kBundle}};
    visit_on_device(args.criterion, prepare, Criteria{});
  }
};

/// One thread per candidate; whole tiles are copied, so places beyond the last one become zero.
template <class T>
struct PrepareCandidates {
  static constexpr int kThreads = 128;
  template <class Ctx>
  static NTKFAST_DEVICE void body(const Ctx& ctx, const PrepareArgs<T>& args) {
    const int64_t i = ctx.block_x() * kThreads + ctx.thread();
    if (i >= args.padded_candidates) return;
    PreparedSizes sizes{args.classes, 0, 0};
    visit_on_device(args.criterion, sizes, Criteria{});
    T* const bundle = args.prepared + bundle_place(i, sizes.candidate) - i % kBundle;
    Prepared<T> out{bundle + i % kBundle, kBundle};
    if (args.candidates_in_rows) {
      out.planes = kCandidatePlanes;
      out.row =
          bundle + kCandidatePlanes * kBundle + i % kBundle * (sizes.candidate - kCandidatePlanes);
    }
    if (i >= args.num_candidates) {
      for (int j = 0; j < sizes.candidate; ++j) out[j] = T(0);
      return;
    }
    const int64_t c = args.candidates ? args.candidates[i] : i, k = args.classes;
    const CandidateInputs inputs{args.mean + c * k, args.outputs + c * k, args.label_probs + i * k,
                                 args.variance[c], args.noise[i]};
    PrepareCandidate<T> prepare{args, inputs, out};
    visit_on_device(args.criterion, prepare, Criteria{});
  }
};

/// Element j of two neighbouring prepared points, or of a prepared candidate.
template <class Pointer>
struct PointPair {
  Pointer first;
  NTKFAST_DEVICE auto operator()(int j) const { return load_pair(first + j * kBundle); }
};
template <class T, class Pointer>
struct CandidateColumn {
  Pointer first;
  NTKFAST_DEVICE T operator()(int j) const { return first[j * kBundle]; }
};

/// The pairwise kernel without tensor cores, in float or double: the reference of the others. A
/// block scores 64 candidates against one group of tiles of 64 points.
template <class T, class Criterion, int K>
struct ScorePairs {
  static constexpr int kThreads = kTileThreads;
  static constexpr int kTile = kTileSize;
  /// As many as there are registers for, without spilling any.
  static constexpr int kResidentBlocks =
      sizeof(T) > 4                                                       ? 1
      : has<Criterion>(kLookAhead) || has<Criterion>(kReadsPointVariance) ? 2
                                                                          : 3;
  static_assert(kBundle % kTile == 0, "a tile lies in one bundle");

  template <class Ctx>
  static NTKFAST_DEVICE void body(const Ctx& ctx, const ScoreArgs<T>& args) {
    const int row = Tile<T>::row(ctx.thread()), col = Tile<T>::col(ctx.thread());
    const int64_t c0 = ctx.block_x() * kTile, group = ctx.block_y();
    const int64_t num_tiles = div_up(args.num_evaluation, kTile);
    const int64_t end = min_of_index((group + 1) * args.tiles_per_group, num_tiles);
    const int point_planes = 1 + Criterion::point_size(args.classes);
    const T* prepared =
        args.prepared + bundle_place(c0, Criterion::candidate_size(args.classes)) + row;
    double total[4] = {};
    for (int64_t t = group * args.tiles_per_group; t < end; ++t) {
      const int64_t x0 = t * kTile;
      Tile<T> tile, dense;
      tile.clear();
      if (args.dense) load_dense(args, c0 + row, x0 + col, dense);
      multiply_tile(ctx, args.depth, args.candidate_factor, c0, args.num_candidates,
                    args.evaluation_factor, x0, args.num_evaluation, tile);
      const T* points = args.points + bundle_place(x0, point_planes) + col;
      NTKFAST_UNROLL_DEVICE
      for (int i = 0; i < 4; ++i) {
        Pair<T> sum(T(0));
        if (c0 + row + 16 * i < args.num_candidates) {
          const CandidateColumn<T, const T*> candidate{prepared + 16 * i};
          NTKFAST_UNROLL_DEVICE
          for (int j = 0; j < 2; ++j) {
            if (x0 + col + 32 * j >= args.num_evaluation) continue;
            const T* first = points + 32 * j;
            const PointPair<const T*> point{first + kBundle};
            const Pair<T> product = tile.value[i][j];
            const Pair<T> S = !args.dense     ? product
                              : args.subtract ? dense.value[i][j] - product
                                              : dense.value[i][j] + product;
            const Pair<T> value = value_of(args.classes, S, point, candidate);
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
        args.partial[group * args.padded_candidates + c] = total[i];
    }
  }

 private:
  static NTKFAST_DEVICE int64_t min_of_index(int64_t a, int64_t b) { return a < b ? a : b; }

  template <class Point, class Candidate>
  static NTKFAST_DEVICE Pair<T> value_of(int k, Pair<T> S, const Point& point,
                                         const Candidate& candidate) {
    if constexpr (sizeof(T) > 4 || K == kAnyClasses) {
      return called_value(k, S, point, candidate);
    } else {
      return Criterion::template value<K>(k, S, point, candidate, static_cast<Pair<T>*>(nullptr));
    }
  }
  /// Exponentials and logarithms in double are long, and so are loops over classes: written out for
  /// every number of a tile they would take the compiler longer than all the rest.
  template <class Point, class Candidate>
  static NTKFAST_DEVICE_CALL Pair<T> called_value(int k, Pair<T> S, Point point,
                                                  Candidate candidate) {
    return Criterion::template value<K>(k, S, point, candidate, static_cast<Pair<T>*>(nullptr));
  }

  /// Loads that wait for nothing, not even for one another: beyond the ends the last place is read
  /// again.
  static NTKFAST_DEVICE void load_dense(const ScoreArgs<T>& args, int64_t first_c, int64_t first_x,
                                        Tile<T>& dense) {
    const T* rows[4];
    NTKFAST_UNROLL_DEVICE
    for (int i = 0; i < 4; ++i) {
      const int64_t c = min_of_index(first_c + 16 * i, args.num_candidates - 1);
      rows[i] = args.dense + (args.candidates ? args.candidates[c] : c) * args.dense_stride;
    }
    int64_t places[2][2];
    NTKFAST_UNROLL_DEVICE
    for (int j = 0; j < 2; ++j) {
      NTKFAST_UNROLL_DEVICE
      for (int lane = 0; lane < 2; ++lane) {
        const int64_t x = min_of_index(first_x + 32 * j + lane, args.num_evaluation - 1);
        places[j][lane] = args.evaluation ? args.evaluation[x] : x;
      }
    }
    NTKFAST_UNROLL_DEVICE
    for (int i = 0; i < 4; ++i) {
      NTKFAST_UNROLL_DEVICE
      for (int j = 0; j < 2; ++j) {
        NTKFAST_UNROLL_DEVICE
        for (int lane = 0; lane < 2; ++lane) dense.value[i][j].v[lane] = rows[i][places[j][lane]];
      }
    }
  }
};

/// Numbers of a prepared candidate in registers, which only loops that are unrolled may ask for.
template <class T, int kCount>
struct CandidateRegisters {
  T value[kCount];
  NTKFAST_DEVICE T operator()(int j) const { return value[j]; }
};

/// The pairwise kernel for a covariance in memory less or plus a product of few terms: the next
/// numbers of a row are on their way while a warp works on those before. A block scores 64
/// candidates against one group of tiles of 64 points; a warp takes one candidate after another
/// through all points of the group, a lane two neighbouring points of a tile.
template <class T, class Criterion, int K>
struct ScoreRows {
  static constexpr int kThreads = 256;
  static constexpr int kWarps = kThreads / 32, kTile = kTileSize;
  /// Classes are written out in registers once, not for each of several numbers: what a warp runs
  /// through again and again has to fit the caches of instructions.
  static constexpr bool kUnrolled = K > 0 && sizeof(T) == 4;
  static constexpr int kCandidateNumbers = kUnrolled ? Criterion::candidate_size(K) : 1;
  static constexpr bool kSoftmax = std::is_base_of<OfSoftmax, Criterion>::value;
  /// Tiles of a row that are asked for at a time. Where nothing but memory binds it, four with
  /// three blocks a multiprocessor were slower on an H100.
  static constexpr int kAhead = has<Criterion>(kLookAhead)                             ? 1
                                : sizeof(T) > 4 || has<Criterion>(kReadsPointVariance) ? 4
                                                                                       : 8;
  /// As many as there are registers for, without spilling any.
  static constexpr int kResidentBlocks = sizeof(T) > 4 ? 1 : 2;
  /// Depths of the product up to here.
  static constexpr int kShallow = 8;
  static_assert(kTile == 2 * 32 && kBundle % kTile == 0, "a tile lies in one bundle");

  template <class Ctx>
  static NTKFAST_DEVICE void body(const Ctx& ctx, const ScoreArgs<T>& args) {
    const int lane = ctx.thread() % 32, warp = ctx.thread() / 32;
    const int64_t group = ctx.block_y(), begin = group * args.tiles_per_group;
    const int64_t left = div_up(args.num_evaluation, int64_t{kTile}) - begin;
    const int count = static_cast<int>(left < args.tiles_per_group ? left : args.tiles_per_group);
    Tiles tiles{begin * kTile + 2 * lane, count, 0, 0};
    if (!args.evaluation && (args.depth == 0 || args.evaluation_factor.row_stride == 1)) {
      const int64_t whole = args.num_evaluation / kTile - begin;
      tiles.whole = whole < count ? static_cast<int>(whole) : count;
      tiles.paired = pairs_lie_even(args) ? tiles.whole : 0;
    }
    const int bundle = (1 + Criterion::point_size(args.classes)) * kBundle;
    const int depth = static_cast<int>(args.depth);
    NTKFAST_KEEP_LOOP
    for (int r = warp; r < kTile; r += kWarps) {
      const int64_t i = ctx.block_x() * kTile + r;
      if (i >= args.num_candidates) break;  // the whole warp
      const int64_t c = args.candidates ? args.candidates[i] : i;
      const T* row = args.dense + c * args.dense_stride;
      const T* factors = args.candidate_factor.data + c * args.candidate_factor.row_stride;
      const CandidateColumn<T, const T*> stored{
          args.prepared + bundle_place(i, Criterion::candidate_size(args.classes))};
      CandidateRegisters<T, kCandidateNumbers> candidate;
      if constexpr (kUnrolled) {
        NTKFAST_UNROLL_DEVICE
        for (int j = 0; j < kCandidateNumbers; ++j) candidate.value[j] = stored(j);
      }
      const T factor = depth > 0 ? factors[0] : T(0);
      double total = 0;
      Pair<T> next[kAhead], S[kAhead];
      // Pointers go along: computed anew, places would take more instructions than sums of squares.
      const T *at = row + tiles.first_x, *factor_at = args.evaluation_factor.data + tiles.first_x;
      const T* first = args.points + begin / 2 * bundle + begin % 2 * kTile + 2 * lane;
      int odd = static_cast<int>(begin % 2);
      load(args, tiles, 0, at, row, 1, next);
      NTKFAST_KEEP_LOOP
      for (int t = 0; t < count; t += kAhead) {
        NTKFAST_UNROLL_DEVICE
        for (int u = 0; u < kAhead; ++u) S[u] = next[u];
        at += kAhead * kTile;
        load(args, tiles, t + kAhead, at, row, 1, next);
        if (depth > 0) add(args, tiles, t, factor, factor_at, 0, S);
        NTKFAST_KEEP_LOOP
        for (int k = 1; k < depth; ++k)
          add(args, tiles, t, factors[k * args.candidate_factor.col_stride],
              factor_at + k * args.evaluation_factor.col_stride, k, S);
        factor_at += kAhead * kTile;
        Pair<T> sum(T(0));
        const bool all = t + kAhead <= count;
        NTKFAST_UNROLL_DEVICE
        for (int u = 0; u < kAhead; ++u) {
          if (kAhead > 1 && !all && t + u >= count) break;
          const PointPair<const T*> point{first + kBundle};
          const Pair<T> value = value_of(args.classes, S[u], point, candidate, stored);
          sum = fma_of(load_pair(first), value, sum);
          first += odd ? bundle - kTile : kTile;
          odd = 1 - odd;
        }
        total += static_cast<double>(sum.v[0] + sum.v[1]);
      }
      total = sum_lanes<32>(ctx, total);
      if (lane == 0) args.partial[group * args.padded_candidates + i] = total;
    }
  }

 private:
  /// Of a group of points.
  struct Tiles {
    int64_t first_x;  // of this lane
    int count;
    int whole;   // tiles, from the first one on, of neighbouring numbers
    int paired;  // of those, with all pairs at even places
  };
  static NTKFAST_DEVICE bool pairs_lie_even(const ScoreArgs<T>& args) {
    return lies_even(args.dense, args.dense_stride) &&
           (args.depth == 0 ||
            lies_even(args.evaluation_factor.data, args.evaluation_factor.col_stride));
  }
  static NTKFAST_DEVICE bool lies_even(const T* p, int64_t stride) {
    return reinterpret_cast<uintptr_t>(p) % (2 * sizeof(T)) == 0 && stride % 2 == 0;
  }

  /// Numbers of a row for tiles t, t + 1, ..., which are at `at` where they are neighbours; beyond
  /// the last tile there are zeros.
  static NTKFAST_DEVICE void load(const ScoreArgs<T>& args, const Tiles& tiles, int t, const T* at,
                                  const T* row, int64_t stride, Pair<T> (&out)[kAhead]) {
    if (t + kAhead <= tiles.paired) {
      NTKFAST_UNROLL_DEVICE
      for (int u = 0; u < kAhead; ++u) out[u] = load_pair(at + u * kTile);
      return;
    }
    NTKFAST_UNROLL_DEVICE
    for (int u = 0; u < kAhead; ++u) {
      if (kAhead > 1 && t + u < tiles.paired) {
        out[u] = load_pair(at + u * kTile);
      } else if (t + u < tiles.whole) {
        out[u].v[0] = at[u * kTile];
        out[u].v[1] = at[u * kTile + 1];
      } else {
        out[u] = t + u < tiles.count ? gathered(row, stride, tiles.first_x + (t + u) * kTile,
                                                args.num_evaluation - 1, args.evaluation)
                                     : Pair<T>(T(0));
      }
    }
  }
  /// Beyond the last point the last one is read again, and weighs nothing there.
  static NTKFAST_DEVICE_CALL Pair<T> gathered(const T* row, int64_t stride, int64_t x, int64_t last,
                                              const int64_t* index) {
    Pair<T> out;
    NTKFAST_UNROLL_DEVICE
    for (int side = 0; side < 2; ++side) {
      const int64_t e = x + side < last ? x + side : last;
      out.v[side] = row[(index ? index[e] : e) * stride];
    }
    return out;
  }
  /// S -+= term k of the product.
  static NTKFAST_DEVICE void add(const ScoreArgs<T>& args, const Tiles& tiles, int t, T factor,
                                 const T* at, int k, Pair<T> (&S)[kAhead]) {
    Pair<T> right[kAhead];
    load(args, tiles, t, at, args.evaluation_factor.data + k * args.evaluation_factor.col_stride,
         args.evaluation_factor.row_stride, right);
    const Pair<T> left(args.subtract ? -factor : factor);
    NTKFAST_UNROLL_DEVICE
    for (int u = 0; u < kAhead; ++u) S[u] = fma_of(left, right[u], S[u]);
  }

  template <class Point, class Candidate, class Stored>
  static NTKFAST_DEVICE Pair<T> value_of(int k, Pair<T> S, const Point& point,
                                         const Candidate& candidate, const Stored& stored) {
    if constexpr (!kUnrolled) {
      return called_value(k, S, point, stored);
    } else if constexpr (kSoftmax) {
      const Pair<T> A = Criterion::moderate_step_of(S, candidate);
      if (Criterion::is_moderate(A, candidate))
        return Criterion::template moderate_value<K>(K, A, point, candidate);
      return called_large_value(k, S, point, stored);
    } else {
      return Criterion::template value<K>(K, S, point, candidate, static_cast<Pair<T>*>(nullptr));
    }
  }
  template <class Point, class Candidate>
  static NTKFAST_DEVICE_CALL Pair<T> called_value(int k, Pair<T> S, Point point,
                                                  Candidate candidate) {
    return Criterion::template value<kAnyClasses>(k, S, point, candidate,
                                                  static_cast<Pair<T>*>(nullptr));
  }
  template <class Point, class Candidate>
  static NTKFAST_DEVICE_CALL Pair<T> called_large_value(int k, Pair<T> S, Point point,
                                                        Candidate candidate) {
    return Criterion::large_value(k, S, point, candidate);
  }
};

/// utilities[c] = sum over the groups of points, in order; zero when there are none.
struct SumGroups {
  static constexpr int kThreads = 128;
  template <class Ctx, class Args>
  static NTKFAST_DEVICE void body(const Ctx& ctx, const Args& args) {
    const int64_t c = ctx.block_x() * kThreads + ctx.thread();
    if (c >= args.num_candidates) return;
    double sum = 0;
    for (int64_t g = 0; g < args.num_groups; ++g)
      sum += args.partial[g * args.padded_candidates + c];
    args.utilities[c] = sum;
  }
};

// --- Drivers: the launches of one call, on whatever `launcher` runs them ---

struct ScoreSizes {
  int64_t points, prepared, partial;  // bytes, each a multiple of 256
  int64_t total() const { return points + prepared + partial; }
};

/// Rows and columns of a tile of pairs.
struct TileShape {
  int candidates, points;
};
constexpr TileShape kPlainTile{kTileSize, kTileSize};

inline int64_t groups_of(int64_t num_candidates, int64_t num_evaluation, TileShape tile,
                         int64_t wanted_blocks, int64_t* tiles_per_group) {
  const int64_t candidate_tiles = div_up(num_candidates, tile.candidates);
  const int64_t point_tiles = div_up(num_evaluation, tile.points);
  int64_t groups = div_up(wanted_blocks, candidate_tiles > 0 ? candidate_tiles : 1);
  groups = groups < point_tiles ? groups : point_tiles;
  *tiles_per_group = groups > 0 ? div_up(point_tiles, groups) : 0;
  return groups > 0 ? div_up(point_tiles, *tiles_per_group) : 0;
}

inline ScoreSizes score_sizes(int criterion, int64_t k, int64_t num_candidates,
                              int64_t num_evaluation, int element_bytes, TileShape tile,
                              int64_t wanted_blocks = kWantedBlocks) {
  int64_t point_size = 0, candidate_size = 0, tiles_per_group = 0;
  visit_scalar(criterion, [&](auto c) {
    point_size = decltype(c)::point_size(static_cast<int>(k));
    candidate_size = decltype(c)::candidate_size(static_cast<int>(k));
  });
  const int64_t padded_candidates = round_to(num_candidates, kBundle);
  return {
      round_to((1 + point_size) * round_to(num_evaluation, kBundle) * element_bytes, 256),
      round_to(candidate_size * padded_candidates * element_bytes, 256),
      round_to(groups_of(num_candidates, num_evaluation, tile, wanted_blocks, &tiles_per_group) *
                   padded_candidates * int64_t{sizeof(double)},
               256)};
}

template <class T>
ScoreSizes score_sizes(const ScoreArgs<T>& args, TileShape tile) {
  return score_sizes(args.criterion, args.classes, args.num_candidates, args.num_evaluation,
                     int{sizeof(T)}, tile, args.wanted_blocks);
}

/// Fills the workspace part of `args`, which is score_sizes(...).total() bytes at `memory`.
template <class T>
void place_workspace(ScoreArgs<T>& args, void* memory, TileShape tile) {
  const ScoreSizes sizes = score_sizes(args, tile);
  char* bytes = static_cast<char*>(memory);
  args.points = reinterpret_cast<T*>(bytes);
  args.prepared = reinterpret_cast<T*>(bytes + sizes.points);
  args.partial = reinterpret_cast<double*>(bytes + sizes.points + sizes.prepared);
  args.padded_points = round_to(args.num_evaluation, kBundle);
  args.padded_candidates = round_to(args.num_candidates, kBundle);
  args.num_groups = groups_of(args.num_candidates, args.num_evaluation, tile, args.wanted_blocks,
                              &args.tiles_per_group);
}

template <class Launcher, class T>
void launch_prepare(Launcher& launcher, const PrepareArgs<T>& args) {
  launcher.template run<PreparePoints<T>>({div_up(args.padded_points, 128), 1}, 0, args);
  launcher.template run<PrepareCandidates<T>>({div_up(args.padded_candidates, 128), 1}, 0, args);
}

template <class T, class Criterion, int K, class Launcher>
void launch_pairs(Launcher& launcher, const ScoreArgs<T>& args) {
  const Grid grid{div_up(args.num_candidates, kTileSize), args.num_groups};
  if (args.dense && args.depth <= ScoreRows<T, Criterion, K>::kShallow) {
    launcher.template run<ScoreRows<T, Criterion, K>>(grid, 0, args);
  } else {
    launcher.template run<ScorePairs<T, Criterion, K>>(grid, tile_shared_bytes<T>(), args);
  }
}

/// Number of classes the kernels are unrolled for; every other number is a loop.
template <class Criterion, class Visitor>
void visit_classes(int k, Visitor&& visitor) {
  if constexpr (!has<Criterion>(kLookAhead)) {
    visitor(std::integral_constant<int, 1>{});                          // classes play no part
  } else if (k == 2 && std::is_base_of<OfSoftmax, Criterion>::value) {  // the others are cheap
    if constexpr (std::is_base_of<OfSoftmax, Criterion>::value)
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
  place_workspace(args, workspace, kPlainTile);
  if (args.num_evaluation > 0) {
    launch_prepare<Launcher, T>(launcher, args);
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
