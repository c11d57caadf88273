// Feature-space scoring on the tensor cores of compute capability 9.0: wgmma (warpgroup_tile.cuh)
// forms the covariances of a tile while the special functions work on those of the tile before it.
//
// A block is alone on its multiprocessor and goes through its items, each a tile of candidates and
// a group of tiles of points, without a break: slices of psi, and what is prepared of points and
// candidates (planes), are copied from tile to tile and from item to item. Results do not depend on
// the number of blocks.
#pragma once

#include "cuda/operand_rows.cuh"
#include "cuda/score_tensor.cuh"
#include "cuda/warpgroup_tile.cuh"

namespace ntkfast {
namespace {

struct WarpgroupScoreArgs {
  TensorScoreArgs tensor;                  // its rows play no part
  OperandRows candidate_rows, point_rows;  // packed, in the order of candidates and points
  int items;
};

/// Where a block is among its tiles, of kColumns points each.
template <int kColumns>
struct TileWalk {
  int item, row, group, tile, end;  // row and tile: of candidates and points, in tiles
  bool first;                       // of its item

  NTKFAST_DEVICE void start(const WarpgroupScoreArgs& args, int at) {
    const ScoreArgs<float>& score = args.tensor.score;
    const TilePlace place =
        place_in_panels(at, div_up(score.num_candidates, kTensorTile), score.num_groups);
    item = at;
    row = static_cast<int>(place.row);
    group = static_cast<int>(place.col);
    const int tiles = static_cast<int>(div_up(score.num_evaluation, kColumns));
    const int of_group = static_cast<int>(score.tiles_per_group * (kTensorTile / kColumns));
    tile = group * of_group;
    end = tile + of_group < tiles ? tile + of_group : tiles;
    first = true;
  }
  NTKFAST_DEVICE bool last() const { return tile + 1 == end; }
  NTKFAST_DEVICE int64_t c0() const { return int64_t{row} * kTensorTile; }
  NTKFAST_DEVICE int64_t x0() const { return int64_t{tile} * kColumns; }
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

/// A prepared candidate whose first numbers are in planes, the others side by side, a multiple of
/// four and at a place that four divides: in unrolled loops four of them are one load.
template <class Pointer>
struct CandidateRow {
  Pointer planes, row;
  NTKFAST_DEVICE float operator()(int j) const {
    if (j < kCandidatePlanes) return planes[j * kBundle];
    const int behind = j - kCandidatePlanes;
    return load_four(row + behind / 4 * 4).v[behind % 4];
  }
};

/// Two warpgroups multiply, and two others score what they have multiplied before; thread 0 copies
/// as well. A tile has kColumns points. In shared memory there are kSets sets of what is prepared
/// of a tile's points and candidates; without any it is read from the first-level cache.
template <class Products, class Criterion, int K, int kColumns, int kSets>
struct ScorePairsWarpgroup {
  using Tile = WarpgroupTile<Products, kColumns>;
  using Walk = TileWalk<kColumns>;
  static constexpr int kMultipliers = Tile::kMultipliers, kThreads = 2 * kMultipliers;
  static constexpr int kMultiplierRegisters = 160, kScorerRegisters = 96;
  static_assert(kMultipliers * (kMultiplierRegisters + kScorerRegisters) <= 65536, "");
  static_assert(kTensorTile == kBundle, "a tile of candidates is a bundle");
  static constexpr int kCovariances = kTensorTile * kColumns;
  /// Of the barriers behind those of the slices: covariances are there, have been scored, and
  /// planes of either set are there. Every thread says so of its own covariances: what others say
  /// for it behind a __syncwarp is right, too, but compute-sanitizer's racecheck reports it.
  enum { kThere, kScored, kPlanesThere, kBarriers = kPlanesThere + 2 };
  /// Pairs of a row that are scored at once: as many as registers hold.
  static constexpr int kPairs = K == 1 ? 4 : K == kAnyClasses ? 2 : 1;
  using Scores = RowScores<Criterion, K, Tile::kPairs, kPairs, kSets ? kColumns : kBundle>;
  /// Numbers of a candidate that lie side by side: chunks of 16 bytes of eight neighbours are in
  /// different banks where a row has an odd number of them.
  static constexpr int kRowNumbers = K > 0 && kSets > 0 && kColumns == kTensorTile
                                         ? Criterion::candidate_size(K) - kCandidatePlanes
                                         : 0;
  static constexpr bool kInRows = kRowNumbers > 0 && kRowNumbers % 8 == 4;

  /// Numbers of a set: of candidates, and behind them of points.
  static NTKFAST_HD int candidate_numbers(int classes) {
    return Criterion::candidate_size(classes) * kTensorTile;
  }
  static NTKFAST_HD int set_numbers(int classes) {
    return kSets ? candidate_numbers(classes) + (1 + Criterion::point_size(classes)) * kColumns : 0;
  }
  static NTKFAST_HD int sets_at(int stages) {
    return stages * Tile::kStageBytes + kCovariances * int{sizeof(float)};
  }
  static NTKFAST_HD int barriers_at(int classes, int stages) {
    return sets_at(stages) + kSets * set_numbers(classes) * int{sizeof(float)};
  }
  static int shared_bytes(int classes, int stages) {
    return barriers_at(classes, stages) + (2 * stages + kBarriers) * int{sizeof(uint64_t)};
  }

  template <class Ctx>
  static NTKFAST_DEVICE void body(const Ctx& ctx, const WarpgroupScoreArgs& args) {
    if constexpr (!kByWarpgroups) return;
    const int stages = args.tensor.stages;
    const int at = barriers_at(args.tensor.score.classes, stages);
    auto ring = Tile::ring(ctx, stages, at);
    const auto barriers =
        ctx.template shared<uint64_t>(at + 2 * stages * int{sizeof(uint64_t)}, kBarriers);
    if (ctx.thread() == 0) {
      Tile::open(ctx, ring);
      ctx.open_barrier(barriers + kThere, kMultipliers);
      ctx.open_barrier(barriers + kScored, kMultipliers);
      ctx.open_barrier(barriers + kPlanesThere, 1);
      ctx.open_barrier(barriers + (kPlanesThere + 1), 1);
    }
    ctx.barrier();
    const auto covariances = ctx.template shared<float>(stages * Tile::kStageBytes, kCovariances);
    if (ctx.thread() < kMultipliers) {
      ctx.template take_registers<kMultiplierRegisters>();
      multiply(ctx, args, ring, barriers, covariances);
    } else {
      ctx.template keep_registers<kScorerRegisters>();
      score(ctx, args, barriers, covariances);
    }
  }

 private:
  template <class Ctx, class Ring, class Barriers, class Covariances>
  static NTKFAST_DEVICE void multiply(const Ctx& ctx, const WarpgroupScoreArgs& args, Ring& ring,
                                      Barriers barriers, Covariances covariances) {
    const int thread = ctx.thread(), slices = static_cast<int>(args.point_rows.slices);
    // The copier: the slice after those in the ring, once one has been multiplied.
    auto copied = ring;
    Walk next;
    next.start(args, static_cast<int>(ctx.block_x()));
    int next_slice = 0;
    bool more = true;
    const auto copy_next = [&] {
      if (!more) return;
      const int64_t left = int64_t{next.row} * slices + next_slice;
      const int64_t right = next.x0() / kTensorTile * slices + next_slice;
      Tile::copy(
          ctx, copied, args.candidate_rows.data + left * kPackedBytes,
          args.point_rows.data + right * kPackedBytes + next.x0() % kTensorTile * kSliceBytes);
      if (++next_slice < slices) return;
      next_slice = 0;
      more = next.next(args, ctx.grid_x());
    };
    Walk now = next;
    if (thread == 0) {
      NTKFAST_KEEP_LOOP
      for (int s = 0; s < ring.stages; ++s) copy_next();
    }
    typename Tile::Sums sums, part;
    clear_sums(part);
    bool first_slice = true;
    for (int parity = 1, set = 0;; parity ^= 1) {
      if (kSets == 2 && thread == 0) {
        // The set's last planes have been read: the last covariances could not be written else.
        copy_planes(ctx, args, now, set, barriers);
        set ^= 1;
      }
      ctx.converge();
      clear_sums(sums);
      // Loops within a loop: the compiler waits for products wherever a branch touches their sums.
      NTKFAST_KEEP_LOOP
      for (int begin = 0; begin < slices; begin += Products::kSummedSlices) {
        const int left = slices - begin;
        const int count = left < Products::kSummedSlices ? left : Products::kSummedSlices;
        NTKFAST_KEEP_LOOP
        for (int i = 0; i < count; ++i) {
          Tile::multiply(ctx, ring, i > 0, first_slice, part);
          if (thread == 0 && !first_slice) copy_next();
          ctx.converge();
          first_slice = false;
        }
        ctx.wait_products(part);
        add_to_sums(sums, part);
      }
      scale_sums<Tile>(args.tensor, now.c0(), now.x0(), thread, sums);
      ctx.wait_barrier(barriers + kScored, parity);
      if (kSets == 1 && thread == 0) copy_planes(ctx, args, now, 0, barriers);
      NTKFAST_UNROLL_DEVICE
      for (int r = 0; r < Tile::kRows; ++r) {
        NTKFAST_UNROLL_DEVICE
        for (int n = 0; n < Tile::kPairs; ++n) {
          const auto own = covariances + place(r * Tile::kPairs + n, thread);
          own[0] = sums[r][n].v[0];
          own[1] = sums[r][n].v[1];
        }
      }
      ctx.arrive(barriers + kThere);
      if (!now.next(args, ctx.grid_x())) break;
    }
  }

  /// Planes of a tile's points, and of its candidates where the set does not hold them yet.
  template <class Ctx, class Barriers>
  static NTKFAST_DEVICE void copy_planes(const Ctx& ctx, const WarpgroupScoreArgs& args,
                                         const Walk& of, int set, Barriers barriers) {
    const ScoreArgs<float>& score = args.tensor.score;
    const int k = score.classes, planes = 1 + Criterion::point_size(k);
    constexpr int kPlaneBytes = kColumns * int{sizeof(float)};
    const bool with_candidates = kSets == 2 || of.first;
    const int candidates = candidate_numbers(k) * int{sizeof(float)};
    const auto arrived = barriers + (kPlanesThere + set);
    const auto to = ctx.template shared<unsigned char>(
        sets_at(args.tensor.stages) + set * set_numbers(k) * int{sizeof(float)},
        set_numbers(k) * int{sizeof(float)});
    ctx.expect_bytes(arrived, planes * kPlaneBytes + (with_candidates ? candidates : 0));
    if (with_candidates)
      ctx.copy_bulk(to + 0, score.prepared + bundle_place(of.c0(), Criterion::candidate_size(k)),
                    candidates, arrived);
    const float* const from = score.points + bundle_place(of.x0(), planes);
    if constexpr (kColumns == kBundle) {
      ctx.copy_bulk(to + candidates, from, planes * kPlaneBytes, arrived);
    } else {
      NTKFAST_KEEP_LOOP
      for (int j = 0; j < planes; ++j)
        ctx.copy_bulk(to + (candidates + j * kPlaneBytes), from + j * kBundle, kPlaneBytes,
                      arrived);
    }
  }

  template <class Ctx, class Barriers, class Covariances>
  static NTKFAST_DEVICE void score(const Ctx& ctx, const WarpgroupScoreArgs& args,
                                   Barriers barriers, Covariances covariances) {
    const ScoreArgs<float>& score = args.tensor.score;
    const int thread = scored_by(ctx.thread() - kMultipliers), k = score.classes;
    const auto sets =
        ctx.template shared<float>(sets_at(args.tensor.stages), kSets * set_numbers(k));
    const int row = Tile::row(thread), col = Tile::col(thread);
    double totals[2] = {0, 0};  // of the thread's rows
    Walk now;
    now.start(args, static_cast<int>(ctx.block_x()));
    for (int parity = 0, set = 0, set_parity = 0;; parity ^= 1) {
      if (kSets) ctx.wait_barrier(barriers + (kPlanesThere + set), set_parity);
      ctx.wait_barrier(barriers + kThere, parity);
      const int pieces = Scores::pieces(score.num_evaluation - now.x0());
      NTKFAST_KEEP_LOOP
      for (int half = 0; half < 2; ++half) {
        // The warp has no candidate here. A lane without one scores zeros, which are nobody's.
        if (now.c0() + Tile::row(thread / 32 * 32) + 8 * half >= score.num_candidates) break;
        const auto S = [&](int piece) {
          typename Scores::Values values;
          NTKFAST_UNROLL_DEVICE
          for (int i = 0; i < kPairs; ++i) {
            const Pair<float> pair =
                load_pair(covariances + place(half * Tile::kPairs + piece * kPairs + i, thread));
            values.v[2 * i] = pair.v[0];
            values.v[2 * i + 1] = pair.v[1];
          }
          return values;
        };
        const int of_candidate = row + 8 * half;
        double total;
        if constexpr (kSets > 0) {
          const auto candidates = sets + set * set_numbers(k);
          const auto points = candidates + candidate_numbers(k) + col;
          if constexpr (kInRows) {
            const auto rows = candidates + kCandidatePlanes * kBundle;
            total = Scores::sum(k, pieces, points,
                                CandidateRow<decltype(rows + 0)>{candidates + of_candidate,
                                                                 rows + of_candidate * kRowNumbers},
                                S);
          } else {
            total = Scores::sum(k, pieces, points, column(candidates + of_candidate), S);
          }
        } else {
          total = Scores::sum(
              k, pieces, score.points + bundle_place(now.x0(), 1 + Criterion::point_size(k)) + col,
              column(score.prepared + bundle_place(now.c0(), Criterion::candidate_size(k)) +
                     of_candidate),
              S);
        }
        totals[0] += half == 0 ? total : 0.0;
        totals[1] += half == 0 ? 0.0 : total;
      }
      ctx.arrive(barriers + kScored);
      if (now.last()) {
        NTKFAST_UNROLL_DEVICE
        for (int half = 0; half < 2; ++half) {
          double total = totals[half];
          totals[half] = 0;
          NTKFAST_UNROLL_DEVICE
          for (const int bits : {4, 1}) total += ctx.shuffle_xor(total, bits);
          const int64_t c = now.c0() + row + 8 * half;
          if (col == 0 && c < score.num_candidates)
            score.partial[now.group * score.padded_candidates + c] = total;
        }
      }
      if (!now.next(args, ctx.grid_x())) break;
      if (kSets == 2) {
        set_parity ^= set;
        set ^= 1;
      } else {
        set_parity ^= 1;
      }
    }
  }

  /// Whose pairs a thread scores: bits 1 and 2 change places. Lanes that differ in bit 0 then have
  /// the same candidate, and in bit 1 the same points: shared memory serves two such lanes at once.
  static NTKFAST_DEVICE int scored_by(int thread) {
    return (thread & ~6) | (thread & 2) << 1 | (thread & 4) >> 1;
  }
  template <class Pointer>
  static NTKFAST_DEVICE auto column(Pointer first) {
    return CandidateColumn<float, Pointer>{first};
  }
  /// Where the covariances of a thread's pair lie.
  static NTKFAST_DEVICE int place(int pair, int thread) {
    return 2 * (pair * kMultipliers + thread);
  }
};

/// False where this GPU cannot do it, or shared memory does not hold two slices.
template <class Kernel, class Launcher>
bool launch_pairs_warpgroup(Launcher& launcher, WarpgroupScoreArgs args) {
  for (int stages = 4; stages >= 2; --stages) {
    const int bytes = Kernel::shared_bytes(args.tensor.score.classes, stages);
    if (bytes > launcher.shared_memory()) continue;
    args.tensor.stages = stages;
    const int64_t blocks = launcher.multiprocessors();
    launcher.template run<Kernel>({args.items < blocks ? args.items : blocks, 1}, bytes, args);
    return true;
  }
  return false;
}

/// The features of a call as the tensor cores multiply them.
template <class Products>
class ScoreOperands {
 public:
  /// `args` with its numbers of points and candidates and their indices.
  ScoreOperands(const ScoreArgs<float>& score, int64_t depth)
      : depth_(depth),
        shared_(score.evaluation == nullptr && score.candidates == nullptr),
        points_(operand_rows<Products>(score.num_evaluation, depth)),
        candidates_(operand_rows<Products>(shared_ ? 0 : score.num_candidates, depth)) {}

  int64_t bytes() const { return points_.bytes() + candidates_.bytes(); }

  /// Fills them in, in memory aligned to 256 bytes. `args` learns where they are.
  template <class Launcher>
  void launch(Launcher& launcher, const SourceElement<Products>* psi, int64_t stride,
              unsigned char* memory, bool packed, WarpgroupScoreArgs& args) const {
    const ScoreArgs<float>& score = args.tensor.score;
    args.point_rows = points_.at(memory);
    launch_fill_rows<Products>(launcher, psi, stride, depth_, score.evaluation, args.point_rows,
                               packed);
    args.candidate_rows = args.point_rows;
    if (!shared_) {
      args.candidate_rows = candidates_.at(memory + points_.bytes());
      launch_fill_rows<Products>(launcher, psi, stride, depth_, score.candidates,
                                 args.candidate_rows, packed);
    }
    args.tensor.points = args.point_rows.operand();
    args.tensor.candidates = args.candidate_rows.operand();
    args.tensor.point_rows = args.tensor.candidate_rows = nullptr;
    if (std::is_same<SourceElement<Products>, BFloat16>::value) return;
    args.tensor.point_scale = args.point_rows.scale;
    args.tensor.candidate_scale = args.candidate_rows.scale;
  }

 private:
  int64_t depth_;
  bool shared_;
  OperandRows points_, candidates_;
};

/// Features of a call.
template <class Element>
struct ScoreFeatures {
  const Element* data;
  int64_t stride, depth;
};

template <class Products, class Criterion, int K>
using ScoreKernel = ScorePairsWarpgroup<Products, Criterion, K, kTensorTile, 2>;

/// A launch takes them all.
inline int64_t score_items(const ScoreArgs<float>& score) {
  int64_t tiles_per_group = 0;
  return div_up(score.num_candidates, kTensorTile) *
         groups_of(score.num_candidates, score.num_evaluation, kTensorTiles, score.wanted_blocks,
                   &tiles_per_group);
}
template <class Products, class Criterion, int K, class Launcher>
bool scores_by_warpgroup(Launcher& launcher, const ScoreArgs<float>& score) {
  using Kernel = ScoreKernel<Products, Criterion, K>;
  return score_items(score) <= INT32_MAX &&
         launcher.template multiplies_by_warpgroup<Kernel, WarpgroupScoreArgs>();
}

/// Bytes of workspace of a call. Where warps multiply bfloat16 numbers, they read them as they are.
template <class Products, class Launcher>
int64_t score_tensor_bytes(Launcher& launcher, const ScoreArgs<float>& score, int64_t depth) {
  bool packed = true;
  if constexpr (std::is_same<SourceElement<Products>, BFloat16>::value) {
    visit_scalar(score.criterion, [&](auto criterion) {
      using Criterion = decltype(criterion);
      visit_classes<Criterion>(score.classes, [&](auto classes) {
        packed =
            scores_by_warpgroup<Products, Criterion, decltype(classes)::value>(launcher, score);
      });
    });
  }
  const int64_t bytes = score_sizes(score, kTensorTiles).total();
  return packed ? bytes + ScoreOperands<Products>(score, depth).bytes() : bytes;
}

/// The whole call with one criterion and number of classes (see visit_classes). `score` lacks its
/// workspace.
template <class Products, class Criterion, int K, class Launcher, class Prepare>
void launch_score_tensor_as(Launcher& launcher, const ScoreArgs<float>& score,
                            const ScoreFeatures<SourceElement<Products>>& psi, void* workspace,
                            const Prepare& prepare) {
  if (score.num_candidates == 0) return;
  WarpgroupScoreArgs args{};
  args.tensor.score = score;
  place_workspace(args.tensor.score, workspace, kTensorTiles);
  if (score.num_evaluation > 0) {
    const bool by_warpgroups = scores_by_warpgroup<Products, Criterion, K>(launcher, score);
    args.tensor.score.candidates_in_rows =
        by_warpgroups && ScoreKernel<Products, Criterion, K>::kInRows;
    prepare(args.tensor.score);
    if (!by_warpgroups && std::is_same<SourceElement<Products>, BFloat16>::value) {  // as they are
      args.tensor.points = args.tensor.candidates = tensor_operand(psi.data, psi.stride, psi.depth);
      args.tensor.point_rows = score.evaluation;
      args.tensor.candidate_rows = score.candidates;
    } else {
      const ScoreOperands<Products> operands(score, psi.depth);
      unsigned char* const memory =
          static_cast<unsigned char*>(workspace) + score_sizes(score, kTensorTiles).total();
      operands.launch(launcher, psi.data, psi.stride, memory, by_warpgroups, args);
    }
    args.items = static_cast<int>(score_items(score));
    bool launched = !by_warpgroups;
    if (launched) {
      launch_pairs_tensor<Products, Criterion, K>(launcher, args.tensor);
    } else {
      launched = launch_pairs_warpgroup<ScoreKernel<Products, Criterion, K>>(launcher, args);
      if constexpr (K == kAnyClasses) {  // many: half a tile of points, or none in shared memory
        using Half = ScorePairsWarpgroup<Products, Criterion, K, kTensorTile / 2, 1>;
        using Cached = ScorePairsWarpgroup<Products, Criterion, K, kTensorTile, 0>;
        launched = launched || launch_pairs_warpgroup<Half>(launcher, args) ||
                   launch_pairs_warpgroup<Cached>(launcher, args);
      }
    }
    if (!launched) throw std::runtime_error("scoring needs more shared memory than this GPU has");
  }
  launcher.template run<SumGroups>({div_up(score.num_candidates, 128), 1}, 0, args.tensor.score);
}

/// The whole call on tensor cores. `prepare` launches what launch_prepare does.
template <class Products, class Launcher, class Prepare>
void launch_score_tensor(Launcher& launcher, const ScoreArgs<float>& score,
                         const ScoreFeatures<SourceElement<Products>>& psi, void* workspace,
                         const Prepare& prepare) {
  visit_scalar(score.criterion, [&](auto criterion) {
    using Criterion = decltype(criterion);
    visit_classes<Criterion>(score.classes, [&](auto classes) {
      launch_score_tensor_as<Products, Criterion, decltype(classes)::value>(launcher, score, psi,
                                                                            workspace, prepare);
    });
  });
}

}  // namespace
}  // namespace ntkfast
