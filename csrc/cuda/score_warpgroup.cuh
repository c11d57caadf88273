// Feature-space scoring on the tensor cores of compute capability 9.0: wgmma (warpgroup_tile.cuh)
// forms the covariances of a tile while the special functions work on those of the tile before it.
//
// A block is alone on its multiprocessor and goes through its items, each a tile of candidates and a
// group of tiles of points, without a break: one thread copies slices of psi, and what is prepared of
// points and candidates, from tile to tile and from item to item; two warpgroups multiply and score.
// The covariances of a finished tile go to shared memory, each thread's to a place of its own, and
// with every slice of the next tile a few of them are scored. Where many classes leave no room, they
// stay in registers, and products and scores take turns. Results depend neither on the number of
// blocks nor on which of the two ways is taken.
#pragma once

#include "cuda/operand_rows.cuh"
#include "cuda/score_tensor.cuh"
#include "cuda/warpgroup_tile.cuh"

namespace ntkfast {
namespace {

struct WarpgroupScoreArgs {
  TensorScoreArgs tensor;                // its rows play no part
  OperandRows candidate_rows, point_rows;  // packed, in the order of candidates and points
  int items;
};

/// Where a block is among its tiles.
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

/// How many pairs of many labels are scored at once. Which is faster, only a clock can tell:
/// -DNTKFAST_SCORE_PAIRS=1 or 2.
#if !defined(NTKFAST_SCORE_PAIRS)
#define NTKFAST_SCORE_PAIRS 1
#endif

/// What lies in shared memory beside the slices.
enum class Beside {
  kBoth,          // covariances, and what is prepared of a tile's points and candidates
  kPlanes,        // the latter; covariances stay in registers
  kCovariances,  // the former; what is prepared is read from the first-level cache
};

/// `count` pairs of neighbouring points, 8 apart, as one point of 2 count lanes.
template <class Pointer, int kCount>
struct PointPairs {
  Pointer first;
  NTKFAST_DEVICE Lanes<float, 2 * kCount> operator()(int j) const {
    Lanes<float, 2 * kCount> result;
    NTKFAST_UNROLL_DEVICE
    for (int i = 0; i < kCount; ++i) {
      const Pair<float> pair = load_pair(first + (j * kBundle + 8 * i));
      result.v[2 * i] = pair.v[0];
      result.v[2 * i + 1] = pair.v[1];
    }
    return result;
  }
};

template <class Products, class Criterion, int K, Beside kBeside>
struct ScorePairsWarpgroup {
  using Tile = WarpgroupTile<Products>;
  static constexpr int kThreads = Tile::kThreads;
  static constexpr int kTile = kTensorTile;
  static_assert(kTile == kBundle, "a tile is a bundle");
  static constexpr bool kPlanes = kBeside != Beside::kCovariances;
  static constexpr bool kCovariances = kBeside != Beside::kPlanes;
  /// Pairs of a row that are scored at once: as many as registers hold.
  static constexpr int kPairs = K > 2                                                ? NTKFAST_SCORE_PAIRS
                                : K == 1 || (K == kAnyClasses && !kCovariances) ? 4
                                                                                     : 2;
  static constexpr int kPieces = Tile::kRows * Tile::kPairs / kPairs;
  static constexpr int kCovarianceBytes = kTile * kTile * int{sizeof(float)};
  static constexpr int kPlaneBytes = kTile * int{sizeof(float)};

  static NTKFAST_HD int planes(int classes) {
    return kPlanes ? 1 + Criterion::point_size(classes) + Criterion::candidate_size(classes) : 0;
  }
  static NTKFAST_HD int covariances_at(int stages) { return stages * Tile::kStageBytes; }
  static NTKFAST_HD int planes_at(int stages) {
    return covariances_at(stages) + (kCovariances ? kCovarianceBytes : 0);
  }
  static NTKFAST_HD int barriers_at(int classes, int stages) {
    return planes_at(stages) + planes(classes) * kPlaneBytes;
  }
  static int shared_bytes(int classes, int stages) {
    return barriers_at(classes, stages) + (2 * stages + 2) * int{sizeof(uint64_t)};
  }

  template <class Ctx>
  static NTKFAST_DEVICE void body(const Ctx& ctx, const WarpgroupScoreArgs& args) {
    if constexpr (!kByWarpgroups) return;
    const int stages = args.tensor.stages, classes = args.tensor.score.classes;
    const int at = barriers_at(classes, stages);
    auto ring = Tile::ring(ctx, stages, at);
    // Of the planes: there, and read.
    const auto planes_barriers =
        ctx.template shared<uint64_t>(at + 2 * stages * int{sizeof(uint64_t)}, 2);
    if (ctx.thread() == 0) {
      Tile::open(ctx, ring);
      ctx.open_barrier(planes_barriers + 0, 1);
      ctx.open_barrier(planes_barriers + 1, Tile::kWarps);
    }
    ctx.barrier();
    if (ctx.thread() < Tile::kMultipliers) {
      ctx.template take_registers<Tile::kMultiplierRegisters>();
      score(ctx, args, ring, planes_barriers);
    } else {
      ctx.template keep_registers<Tile::kCopierRegisters>();
      if (ctx.thread() == Tile::kMultipliers) copy(ctx, args, ring, planes_barriers);
    }
  }

 private:
  /// The copier: the slices of all tiles, and the planes of each once those before them are read.
  template <class Ctx, class Ring, class Barriers>
  static NTKFAST_DEVICE void copy(const Ctx& ctx, const WarpgroupScoreArgs& args, Ring& ring,
                                  Barriers planes_barriers) {
    const ScoreArgs<float>& score = args.tensor.score;
    const int64_t slices = args.point_rows.slices;
    const int point_planes = 1 + Criterion::point_size(score.classes);
    const int candidate_planes = Criterion::candidate_size(score.classes);
    const auto memory = ctx.template shared<unsigned char>(planes_at(args.tensor.stages),
                                                           planes(score.classes) * kPlaneBytes);
    int parity = 1;
    const auto copy_planes = [&](const TileWalk& of) {
      ctx.wait_barrier(planes_barriers + 1, parity);
      parity ^= 1;
      const int points = point_planes * kPlaneBytes,
                candidates = of.first ? candidate_planes * kPlaneBytes : 0;
      ctx.expect_bytes(planes_barriers + 0, points + candidates);
      if (of.first)
        ctx.copy_bulk(memory + 0, score.prepared + bundle_place(of.c0(), candidate_planes),
                      candidates, planes_barriers + 0);
      ctx.copy_bulk(memory + candidate_planes * kPlaneBytes,
                    score.points + bundle_place(of.x0(), point_planes), points,
                    planes_barriers + 0);
    };
    TileWalk now;
    now.start(args, static_cast<int>(ctx.block_x()));
    // A tile is scored with the slices of the next one, or after its own.
    TileWalk scored = now;
    bool any = !kCovariances, more = true;
    while (more) {
      if (!kCovariances) scored = now;
      const unsigned char* left = args.candidate_rows.data + now.row * slices * kPackedBytes;
      const unsigned char* right = args.point_rows.data + now.tile * slices * kPackedBytes;
      for (int64_t slice = 0; slice < slices; ++slice) {
        Tile::copy(ctx, ring, left, right);
        left += kPackedBytes;
        right += kPackedBytes;
        // Not first of all: slices would have to wait until the planes before are read.
        if (kPlanes && any && slice == (slices > 1 ? 1 : 0)) copy_planes(scored);
      }
      if (kCovariances) scored = now;
      any = true;
      more = now.next(args, ctx.grid_x());
    }
    if (kPlanes && kCovariances) copy_planes(scored);
  }

  template <class Ctx, class Ring, class Barriers>
  static NTKFAST_DEVICE void score(const Ctx& ctx, const WarpgroupScoreArgs& args, Ring& ring,
                                   Barriers planes_barriers) {
    const ScoreArgs<float>& score = args.tensor.score;
    const int thread = ctx.thread();
    const int slices = static_cast<int>(args.point_rows.slices);
    const int point_planes = 1 + Criterion::point_size(score.classes);
    const int candidate_planes = Criterion::candidate_size(score.classes);
    const auto covariances = ctx.template shared<float>(covariances_at(args.tensor.stages),
                                                        kCovariances ? kTile * kTile : 0);
    const auto planes_memory = ctx.template shared<float>(planes_at(args.tensor.stages),
                                                          planes(score.classes) * kTile);
    typename Tile::Sums sums, part;
    clear_sums(part);

    // The tile that is scored, piece by piece.
    TileWalk scored;
    int piece = kPieces, parity = 0;
    Lanes<float, 2 * kPairs> sum(0.0f);
    double first_total = 0, second_total = 0;  // of this thread's two candidates
    const auto start_scores = [&](const TileWalk& of) {
      scored = of;
      piece = 0;
    };
    const auto score_piece = [&] {
      if (kPlanes && piece == 0) {
        ctx.wait_barrier(planes_barriers + 0, parity);
        parity ^= 1;
      }
      constexpr int kHalf = kPieces / 2;
      const int n = piece % kHalf * kPairs;
      const bool second = piece >= kHalf;
      const int row = Tile::row(thread) + (second ? 8 : 0);
      const int col = Tile::col(thread) + 8 * n;
      if (scored.c0() + row < score.num_candidates) {
        Lanes<float, 2 * kPairs> S;
        NTKFAST_UNROLL_DEVICE
        for (int i = 0; i < kPairs; ++i) {
          const Pair<float> pair = kCovariances ? load_pair(covariances + place(piece * kPairs + i, thread))
                                                : sums[0][i];
          S.v[2 * i] = pair.v[0];
          S.v[2 * i + 1] = pair.v[1];
        }
        const auto add = [&](auto points, auto candidates) {
          const PointPairs<decltype(points + 0), kPairs> weights{points + 0},
              point{points + kBundle};
          const CandidateColumn<float, decltype(candidates + 0)> candidate{candidates + 0};
          auto value = Criterion::template value<K>(
              score.classes, S, point, candidate, static_cast<Lanes<float, 2 * kPairs>*>(nullptr));
          if (scored.x0() + kTile > score.num_evaluation) {
            NTKFAST_UNROLL_DEVICE
            for (int i = 0; i < 2 * kPairs; ++i)  // beyond the last point it may be anything
              if (scored.x0() + col + 8 * (i / 2) + i % 2 >= score.num_evaluation) value.v[i] = 0;
          }
          sum = fma_of(weights(0), value, sum);
        };
        if constexpr (kPlanes) {
          add(planes_memory + (candidate_planes * kTile + col), planes_memory + row);
        } else {
          add(score.points + (bundle_place(scored.x0(), point_planes) + col),
              score.prepared + (bundle_place(scored.c0(), candidate_planes) + row));
        }
      }
      if ((n + kPairs) % 4 == 0) {
        float of_lane = 0;
        NTKFAST_UNROLL_DEVICE
        for (int i = 0; i < 2 * kPairs; ++i) of_lane += sum.v[i];
        const double total = static_cast<double>(sum_lanes<4>(ctx, of_lane));
        first_total += second ? 0.0 : total;
        second_total += second ? total : 0.0;
        sum = Lanes<float, 2 * kPairs>(0.0f);
      }
      if (!kCovariances) rotate(sums);
      if (++piece < kPieces) return;
      if (kPlanes) {
        ctx.converge();
        if (thread % 32 == 0) ctx.arrive(planes_barriers + 1);
      }
      if (!scored.last()) return;
      if (thread % 4 == 0) {
        double* const partial = score.partial + scored.group * score.padded_candidates;
        const int64_t c = scored.c0() + Tile::row(thread);
        if (c < score.num_candidates) partial[c] = first_total;
        if (c + 8 < score.num_candidates) partial[c + 8] = second_total;
      }
      first_total = second_total = 0;
    };

    TileWalk now;
    now.start(args, static_cast<int>(ctx.block_x()));
    // Pieces are spread over all slices but the last, so that the next planes are there in time.
    const int sharing = slices > 1 ? slices - 1 : 1;
    bool first_slice = true;
    for (;;) {
      clear_sums(sums);
      int due = 0;
      // Loops within a loop: the compiler waits for products wherever a branch touches their sums.
      NTKFAST_KEEP_LOOP
      for (int begin = 0; begin < slices; begin += Products::kSummedSlices) {
        const int left = slices - begin;
        const int count = left < Products::kSummedSlices ? left : Products::kSummedSlices;
        NTKFAST_KEEP_LOOP
        for (int i = 0; i < count; ++i) {
          Tile::multiply(ctx, ring, i > 0, first_slice, part);
          first_slice = false;
          if constexpr (kCovariances) {
            due += kPieces;
            NTKFAST_KEEP_LOOP
            for (; due >= sharing; due -= sharing)
              if (piece < kPieces) score_piece();
          }
        }
        ctx.wait_products(part);
        add_to_sums(sums, part);
      }
      scale_sums<Tile>(args.tensor, now.c0(), now.x0(), thread, sums);
      if constexpr (kCovariances) {
        NTKFAST_UNROLL_DEVICE
        for (int r = 0; r < Tile::kRows; ++r) {
          NTKFAST_UNROLL_DEVICE
          for (int n = 0; n < Tile::kPairs; ++n) {
            const auto own = covariances + place(r * Tile::kPairs + n, thread);
            own[0] = sums[r][n].v[0];
            own[1] = sums[r][n].v[1];
          }
        }
      }
      start_scores(now);
      const bool more = now.next(args, ctx.grid_x());
      if (kCovariances && more) continue;
      NTKFAST_KEEP_LOOP
      while (piece < kPieces) score_piece();
      if (!more) break;
    }
  }

  /// Where this thread keeps the covariances of a pair.
  static NTKFAST_DEVICE int place(int pair, int thread) {
    return 2 * (pair * Tile::kMultipliers + thread);
  }
  /// Registers cannot be indexed by the number of a piece: the next pairs come to the front.
  static NTKFAST_DEVICE void rotate(typename Tile::Sums& sums) {
    constexpr int kAll = Tile::kRows * Tile::kPairs;
    NTKFAST_UNROLL_DEVICE
    for (int i = 0; i + kPairs < kAll; ++i)
      sums[i / Tile::kPairs][i % Tile::kPairs] =
          sums[(i + kPairs) / Tile::kPairs][(i + kPairs) % Tile::kPairs];
  }
};

/// False where this GPU cannot do it, or shared memory does not hold two slices.
template <class Products, class Criterion, int K, Beside kBeside, class Launcher>
bool launch_pairs_warpgroup(Launcher& launcher, WarpgroupScoreArgs args) {
  using Kernel = ScorePairsWarpgroup<Products, Criterion, K, kBeside>;
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

/// Bytes of workspace of a call.
template <class Products>
int64_t score_tensor_bytes(const ScoreArgs<float>& score, int64_t depth) {
  return score_sizes(score, kTensorTiles).total() + ScoreOperands<Products>(score, depth).bytes();
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
    prepare(args.tensor.score);
    const int64_t items =
        div_up(score.num_candidates, kTensorTile) * args.tensor.score.num_groups;
    using Kernel = ScorePairsWarpgroup<Products, Criterion, K, Beside::kBoth>;
    const bool by_warpgroups =
        items <= INT32_MAX &&
        launcher.template multiplies_by_warpgroup<Kernel, WarpgroupScoreArgs>();
    if (!by_warpgroups && std::is_same<SourceElement<Products>, BFloat16>::value) {  // as they are
      args.tensor.points = args.tensor.candidates = tensor_operand(psi.data, psi.stride, psi.depth);
      args.tensor.point_rows = score.evaluation;
      args.tensor.candidate_rows = score.candidates;
    } else {
      const ScoreOperands<Products> operands(score, psi.depth);
      unsigned char* const memory = static_cast<unsigned char*>(workspace) +
                                    score_sizes(score, kTensorTiles).total();
      operands.launch(launcher, psi.data, psi.stride, memory, by_warpgroups, args);
    }
    args.items = static_cast<int>(items);
    if (!by_warpgroups) {
      launch_pairs_tensor<Products, Criterion, K>(launcher, args.tensor);
    } else if constexpr (K == kAnyClasses) {
      if (!launch_pairs_warpgroup<Products, Criterion, K, Beside::kBoth>(launcher, args) &&
          !launch_pairs_warpgroup<Products, Criterion, K, Beside::kPlanes>(launcher, args))
        launch_pairs_warpgroup<Products, Criterion, K, Beside::kCovariances>(launcher, args);
    } else {
      launch_pairs_warpgroup<Products, Criterion, K, Beside::kBoth>(launcher, args);
    }
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
