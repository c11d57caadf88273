// Feature-space scoring on the tensor cores of compute capability 9.0: wgmma (warpgroup_tile.cuh)
// forms the covariances of a tile while the special functions work on those of the tile before it.
//
// A block is alone on its multiprocessor and goes through its items, each a tile of candidates and a
// group of tiles of points, without a break: the stream of slices of psi runs on from tile to tile
// and from item to item. The covariances of a finished tile go to shared memory, each thread's to a
// place of its own, and with every slice of the next tile a few of them are scored. Where that does
// not fit, or a tile has too few slices, products and scores take turns. Results do not depend on
// the number of blocks, nor on which of the two ways is taken.
#pragma once

#include "cuda/score_tensor.cuh"
#include "cuda/split_rows.cuh"
#include "cuda/warpgroup_tile.cuh"

namespace ntkfast {
namespace {

struct WarpgroupScoreArgs : TensorScoreArgs {
  int items;
  bool overlap;  // scores of one tile with the products of the next
};

/// Where a block is among its tiles.
struct TileWalk {
  int item, row, group, tile, end;  // row and tile: of candidates and points, in tiles
  bool first;                       // of its item

  NTKFAST_DEVICE void start(const WarpgroupScoreArgs& args, int at) {
    const ScoreArgs<float>& score = args.score;
    const TilePlace place =
        place_in_panels(at, div_up(score.num_candidates, kTensorTile), score.num_groups);
    item = at;
    row = static_cast<int>(place.row);
    group = static_cast<int>(place.col);
    const int tiles = static_cast<int>(div_up(score.num_evaluation, kTensorTile));
    tile = static_cast<int>(place.col * score.tiles_per_group);
    end = tile + static_cast<int>(score.tiles_per_group);
    end = end < tiles ? end : tiles;
    first = true;
  }
  NTKFAST_DEVICE bool last() const { return tile + 1 == end; }
  NTKFAST_DEVICE int64_t c0() const { return int64_t{row} * kTensorTile; }
  NTKFAST_DEVICE int64_t x0() const { return int64_t{tile} * kTensorTile; }
  /// False at the end.
  NTKFAST_DEVICE bool next(const WarpgroupScoreArgs& args, int64_t blocks) {
    if (!last()) {
      ++tile;
      first = false;
      return true;
    }
    if (item + blocks >= args.items) return false;
    start(args, static_cast<int>(item + blocks));
    return true;
  }
};

/// Which is faster, only a clock can tell: -DNTKFAST_SCORE_PAIRS=1 or 2.
#if !defined(NTKFAST_SCORE_PAIRS)
#define NTKFAST_SCORE_PAIRS 1
#endif

/// `kShared`: what is prepared of a tile's points and candidates lies in shared memory; else it is
/// read from the first-level cache.
template <class Products, class Criterion, int K, bool kShared>
struct ScorePairsWarpgroup {
  using Tile = WarpgroupTile<Products>;
  static constexpr int kThreads = Tile::kThreads;
  static constexpr int kTile = kTensorTile;
  static constexpr int kSlice = Tile::kSlice;
  static_assert(kTile == kBundle, "a tile is a bundle");
  /// Pairs that are scored at once: few of many labels, so that the code stays short and products
  /// and scores mix well; several where little else hides how long a load takes.
  static constexpr int kPairs = K > 2 ? NTKFAST_SCORE_PAIRS : 4;
  static constexpr int kPieces = Tile::kRows * Tile::kPairs / kPairs;
  static constexpr int kCovarianceBytes = kTile * kTile * int{sizeof(float)};
  static_assert(2 * Tile::kStageBytes >= kCovarianceBytes, "they share memory");

  static int plane_bytes(int classes) {
    const int planes = 1 + Criterion::point_size(classes) + Criterion::candidate_size(classes);
    return kShared ? planes * kTile * int{sizeof(float)} : 0;
  }
  static int shared_bytes(int classes, int stages, bool overlap) {
    return stages * Tile::kStageBytes + (overlap ? kCovarianceBytes : 0) + plane_bytes(classes);
  }
  /// Of four stages one is still being multiplied when the next is. Slices that are being copied:
  static NTKFAST_HD int distance(int stages) { return stages - (stages > 3 ? 2 : 1); }
  /// Slices of a tile that scoring the tile before it needs: its planes arrive with the `distance`-th
  /// slice, and have to be free again before the last one.
  static NTKFAST_HD int slices_to_overlap(int stages) { return distance(stages) + 1; }

  template <class Ctx>
  static NTKFAST_DEVICE void body(const Ctx& ctx, const WarpgroupScoreArgs& args) {
    if constexpr (!kByWarpgroups) return;
    const ScoreArgs<float>& score = args.score;
    const int thread = ctx.thread();
    const int slices = args.points.depth_bytes > kSlice
                           ? static_cast<int>(div_up(args.points.depth_bytes, kSlice))
                           : 1;
    const int stages = args.stages, copied = distance(stages);
    const int point_planes = 1 + Criterion::point_size(score.classes);
    const int candidate_planes = Criterion::candidate_size(score.classes);
    const int covariances_at = args.overlap ? stages * Tile::kStageBytes : 0;
    const int planes_at =
        stages * Tile::kStageBytes + (args.overlap ? kCovarianceBytes : 0);  // candidates' first
    const int planes = kShared ? (candidate_planes + point_planes) * kTile : 0;
    const auto slice_memory = ctx.template shared<unsigned char>(0, stages * Tile::kStageBytes);
    const auto covariances = ctx.template shared<float>(covariances_at, kTile * kTile);
    const auto plane_numbers = ctx.template shared<float>(planes_at, planes);
    const auto plane_memory =
        ctx.template shared<unsigned char>(planes_at, planes * int{sizeof(float)});

    // The stream of slices.
    typename Tile::LeftSource candidate_rows;
    typename Tile::RightSource point_rows;
    TileWalk loaded;
    loaded.start(args, static_cast<int>(ctx.block_x()));
    int next_slice = 0, next_stage = 0;
    bool more = true;
    const auto issue = [&] {  // the next slice; taking turns, those of the next tile have to wait
      if (!more) return;
      if (next_slice == 0) {
        if (loaded.first)
          candidate_rows.find(thread, args.candidates, args.candidate_rows, loaded.c0(),
                              score.num_candidates);
        point_rows.find(thread, args.points, args.point_rows, loaded.x0(),
                        score.num_evaluation);
      }
      const auto stage = slice_memory + next_stage * Tile::kStageBytes;
      next_stage = next_stage + 1 < stages ? next_stage + 1 : 0;
      Tile::copy_slice(ctx, args.candidates, candidate_rows, next_slice, stage);
      Tile::copy_slice(ctx, args.points, point_rows, next_slice, stage + kTile * kSlice);
      if (++next_slice < slices) return;
      next_slice = 0;
      more = loaded.next(args, ctx.grid_x()) && args.overlap;
    };
    const auto begin_stream = [&] {
      NTKFAST_KEEP_LOOP
      for (int s = 0; s < copied; ++s) {
        issue();
        ctx.commit_copies();
      }
    };

    // The tile that is scored.
    TileWalk scored = loaded;
    int piece = kPieces;
    Pair<float> sum(0.0f);
    double first_total = 0, second_total = 0;  // of this thread's two candidates
    const auto score_pieces = [&](int target) {
      NTKFAST_KEEP_LOOP
      for (; piece < target; ++piece) {
        const int half = kPieces / 2, n = piece % half * kPairs;
        const bool second = piece >= half;
        const int row = Tile::row(thread) + (second ? 8 : 0);
        const int col = Tile::col(thread) + 8 * n;
        const int64_t x0 = scored.x0();
        if (scored.c0() + row < score.num_candidates) {
          const auto own = covariances + 2 * (piece * kPairs * kThreads + thread);
          const auto S = [&](int i) { return load_pair(own + 2 * i * kThreads); };
          const auto add = [&](auto points, auto candidates) {
            sum = sum + sum_of_pairs<Criterion, K, kPairs, kBundle>(
                            score, x0 + col, points + col, candidates + row, S);
          };
          if constexpr (kShared) {
            add(plane_numbers + candidate_planes * kTile, plane_numbers);
          } else {
            add(score.points + bundle_place(x0, point_planes),
                score.prepared + bundle_place(scored.c0(), candidate_planes));
          }
        }
        if ((n + kPairs) % 4 == 0) {
          const double total = static_cast<double>(sum_lanes<4>(ctx, sum.v[0] + sum.v[1]));
          first_total += second ? 0.0 : total;
          second_total += second ? total : 0.0;
          sum = Pair<float>(0.0f);
        }
      }
    };
    const auto write_totals = [&] {  // at the end of an item
      if (!scored.last()) return;
      if (thread % 4 == 0) {
        double* const partial = score.partial + scored.group * score.padded_candidates;
        const int64_t c = scored.c0() + Tile::row(thread);
        if (c < score.num_candidates) partial[c] = first_total;
        if (c + 8 < score.num_candidates) partial[c + 8] = second_total;
      }
      first_total = second_total = 0;
    };

    TileWalk now = loaded;
    begin_stream();
    int this_stage = 0;
    typename Tile::Sums sums, part;
    clear_sums(part);
    bool any_scored = false;
    for (;;) {
      clear_sums(sums);
      // Loops within a loop: the compiler waits for products wherever a branch touches their sums.
      NTKFAST_KEEP_LOOP
      for (int begin = 0; begin < slices; begin += Products::kSummedSlices) {
        const int left = slices - begin;
        const int count = left < Products::kSummedSlices ? left : Products::kSummedSlices;
        NTKFAST_KEEP_LOOP
        for (int i = 0; i < count; ++i) {
          const int slice = begin + i;
          if (copied == 1) {
            ctx.template wait_copies<0>();
          } else {
            ctx.template wait_copies<1>();
          }
          ctx.publish_operands();
          ctx.barrier();
          Tile::start_slice(ctx, slice_memory + this_stage * Tile::kStageBytes, i > 0, part);
          this_stage = this_stage + 1 < stages ? this_stage + 1 : 0;
          if (stages > 3) ctx.template wait_groups<1>();  // of the stage that is copied to now
          if (kShared && slice + 1 == slices) {  // the planes of the tile before it are free
            if (now.first)
              copy_planes<kTile, kThreads>(ctx, plane_memory,
                                           score.prepared + bundle_place(now.c0(), candidate_planes),
                                           candidate_planes);
            copy_planes<kTile, kThreads>(
                ctx, plane_memory + candidate_planes * kTile * int{sizeof(float)},
                score.points + bundle_place(now.x0(), point_planes), point_planes);
          }
          issue();
          ctx.commit_copies();
          if (any_scored && args.overlap) {
            const int since = slice + 2 - copied, all = slices - copied;
            if (since > 0) score_pieces(since < all ? kPieces * since / all : kPieces);
          }
          if (stages <= 3) ctx.template wait_groups<0>();
        }
        ctx.wait_products(part);
        add_to_sums(sums, part);
      }
      if (any_scored && args.overlap) write_totals();
      if (!args.overlap) {  // everybody has finished the slices, where the covariances will lie
        ctx.template wait_copies<0>();
        ctx.barrier();
      }
      scale_sums<Tile>(args, now.c0(), now.x0(), thread, sums);
      NTKFAST_UNROLL_DEVICE
      for (int r = 0; r < Tile::kRows; ++r) {
        NTKFAST_UNROLL_DEVICE
        for (int n = 0; n < Tile::kPairs; ++n) {
          const auto own = covariances + 2 * ((r * Tile::kPairs + n) * kThreads + thread);
          own[0] = sums[r][n].v[0];
          own[1] = sums[r][n].v[1];
        }
      }
      scored = now;
      piece = 0;
      any_scored = true;
      const bool more_tiles = now.next(args, ctx.grid_x());
      if (args.overlap && more_tiles) continue;
      if (args.overlap) {  // the planes of the last tile
        ctx.template wait_copies<0>();
        ctx.barrier();
      }
      score_pieces(kPieces);
      write_totals();
      if (!more_tiles) break;
      ctx.barrier();  // everybody has read the covariances
      more = true;
      begin_stream();
    }
  }
};

/// How a call of a kernel uses shared memory.
struct WarpgroupPlan {
  int stages;
  bool overlap;
  int bytes;  // 0: it does not fit
};
template <class Kernel>
WarpgroupPlan warpgroup_plan(int classes, int64_t slices, int room) {
  for (const bool overlap : {true, false}) {
    for (int stages = 4; stages >= 2; --stages) {
      const int bytes = Kernel::shared_bytes(classes, stages, overlap);
      if (bytes <= room && (!overlap || slices >= Kernel::slices_to_overlap(stages)))
        return {stages, overlap, bytes};
    }
  }
  return {0, false, 0};
}

/// False where this GPU or its shared memory cannot do it.
template <class Products, class Criterion, int K, bool kShared, class Launcher>
bool launch_pairs_warpgroup(Launcher& launcher, const TensorScoreArgs& from) {
  using Kernel = ScorePairsWarpgroup<Products, Criterion, K, kShared>;
  WarpgroupScoreArgs args{from, 0, false};
  const int64_t items =
      div_up(args.score.num_candidates, kTensorTile) * args.score.num_groups;
  if (!launcher.template multiplies_by_warpgroup<Kernel, WarpgroupScoreArgs>() ||
      items > INT32_MAX)
    return false;
  const int64_t slices = div_up(args.points.depth_bytes, Kernel::kSlice);
  const WarpgroupPlan plan =
      warpgroup_plan<Kernel>(args.score.classes, slices, launcher.shared_memory());
  if (plan.bytes == 0) return false;
  args.items = static_cast<int>(items);
  args.stages = plan.stages;
  args.overlap = plan.overlap;
  const int64_t blocks = launcher.multiprocessors();
  launcher.template run<Kernel>({items < blocks ? items : blocks, 1}, plan.bytes, args);
  return true;
}

/// The features of a call as float16 numbers: of the evaluation points in their order, and of the
/// candidates, which are found among those of all points where these are evaluated.
class SplitScore {
 public:
  SplitScore(const ScoreArgs<float>& score, int64_t depth, bool two)
      : depth_(depth),
        separate_(score.evaluation != nullptr),
        points_(split_operand(score.num_evaluation, depth, two)),
        candidates_(split_operand(separate_ ? score.num_candidates : 0, depth, two)) {}

  int64_t bytes() const { return points_.bytes() + candidates_.bytes(); }

  /// Splits them, in memory aligned to 256 bytes, and says in `args` where they are.
  template <bool kTwo, class Launcher>
  void launch(Launcher& launcher, const float* psi, int64_t stride, void* memory,
              TensorScoreArgs& args) const {
    const ScoreArgs<float>& score = args.score;
    const SplitOperand points = points_.at(memory);
    launch_split_rows<kTwo>(launcher, psi, stride, depth_, score.evaluation, points);
    args.points = args.candidates = points.operand();
    args.point_scale = args.candidate_scale = points.scale;
    args.candidate_rows = score.candidates;
    if (!separate_) return;
    const SplitOperand candidates =
        candidates_.at(static_cast<unsigned char*>(memory) + points.bytes());
    launch_split_rows<kTwo>(launcher, psi, stride, depth_, score.candidates, candidates);
    args.candidates = candidates.operand();
    args.candidate_scale = candidates.scale;
    args.candidate_rows = nullptr;
  }

 private:
  int64_t depth_;
  bool separate_;
  SplitOperand points_, candidates_;
};

/// The whole call with one criterion and number of classes (see visit_classes). `args` lacks its
/// workspace and stages.
template <class Products, class Criterion, int K, class Launcher, class Prepare>
void launch_score_tensor_as(Launcher& launcher, TensorScoreArgs args, void* workspace,
                            const Prepare& prepare) {
  ScoreArgs<float>& score = args.score;
  if (score.num_candidates == 0) return;
  place_workspace(score, workspace, kTensorTiles);
  if (score.num_evaluation > 0) {
    prepare(score);
    bool launched = false;
    if constexpr (sizeof(typename Products::Element) == 2) {
      launched = launch_pairs_warpgroup<Products, Criterion, K, true>(launcher, args);
      if constexpr (K == kAnyClasses)
        launched = launched ||
                   launch_pairs_warpgroup<Products, Criterion, K, false>(launcher, args);
    }
    if (!launched) launch_pairs_tensor<Products, Criterion, K>(launcher, args);
  }
  launcher.template run<SumGroups>({div_up(score.num_candidates, 128), 1}, 0, score);
}

/// The whole call on tensor cores. `prepare` launches what launch_prepare does.
template <class Products, class Launcher, class Prepare>
void launch_score_tensor(Launcher& launcher, const TensorScoreArgs& args, void* workspace,
                         const Prepare& prepare) {
  visit_scalar(args.score.criterion, [&](auto criterion) {
    using Criterion = decltype(criterion);
    visit_classes<Criterion>(args.score.classes, [&](auto classes) {
      launch_score_tensor_as<Products, Criterion, decltype(classes)::value>(launcher, args,
                                                                            workspace, prepare);
    });
  });
}

}  // namespace
}  // namespace ntkfast
