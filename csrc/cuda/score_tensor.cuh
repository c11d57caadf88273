// Feature-space scoring on tensor cores: mma.sync fed by cp.async, the criterion in the epilogue,
// from the same prepared points and candidates as the reference kernel of score.cuh. For GPUs of
// compute capability 9.0 there is score_warpgroup.cuh.
//
// A block scores 128 candidates against one group of tiles of 128 or 64 points. The stream of
// slices of psi (tensor_tile.cuh) runs on into the next tile while the criterion of this one is
// computed; with two blocks on a multiprocessor, one forms products meanwhile. The stream has three
// stages, or two where shared memory does not hold them.
#pragma once

#include "cuda/row_scores.cuh"
#include "cuda/tensor_tile.cuh"

namespace ntkfast {
namespace {

/// The reference kernel's arguments, with psi in the element type of the products.
struct TensorScoreArgs {
  ScoreArgs<float> score;  // its covariance part is unused
  TensorOperand candidates, points;
  const int64_t *candidate_rows, *point_rows;  // of each; null: in order
  const float *candidate_scale, *point_scale;  // of each row, the points' in order; null: one
  int stages;                                  // slices in shared memory
};

/// sums *= the scales of their rows and columns.
template <class Tile>
NTKFAST_DEVICE void scale_sums(const TensorScoreArgs& args, int64_t c0, int64_t x0, int thread,
                               typename Tile::Sums& sums) {
  if (!args.point_scale) return;
  const float* across = args.point_scale + x0 + Tile::col(thread);
  NTKFAST_UNROLL_DEVICE
  for (int r = 0; r < Tile::kRows; ++r) {
    const int64_t c = c0 + Tile::row(thread) + 8 * r;
    const int64_t row = c >= args.score.num_candidates ? 0
                        : args.candidate_rows          ? args.candidate_rows[c]
                                                       : c;
    const float down = args.candidate_scale[row];
    NTKFAST_UNROLL_DEVICE
    for (int n = 0; n < Tile::kPairs; ++n) {
      const Pair<float> scale = load_pair(across + 8 * n);
      NTKFAST_UNROLL_DEVICE
      for (int lane = 0; lane < 2; ++lane)
        sums[r][n].v[lane] = unscaled(sums[r][n].v[lane], down, scale.v[lane]);
    }
  }
}

/// Starts copying kWidth numbers of each plane of a bundle, which then lie close together.
template <int kWidth, int kThreads, class Ctx, class Memory>
NTKFAST_DEVICE void copy_planes(const Ctx& ctx, Memory to, const float* from, int planes) {
  constexpr int kPieces = kWidth * int{sizeof(float)} / 16;
  for (int i = ctx.thread(); i < planes * kPieces; i += kThreads)
    ctx.copy_async(to + i * 16, from + i / kPieces * kBundle + i % kPieces * 4, 16);
}

/// The tiles in which work is divided into groups.
constexpr TileShape kTensorTiles{kTensorTile, kTensorTile};

template <class Products, class Criterion, int K>
struct ScorePairsTensor {
  /// Two blocks on a multiprocessor bound the registers of a thread to 128. Sums that begin anew
  /// take as many registers again: such blocks hold half a tile each.
  static constexpr int kResidentBlocks = 2;
  using Tile = TensorTile<Products, Products::kSplit ? 32 : 64>;
  static constexpr int kThreads = Tile::kThreads;
  static constexpr int kTile = Tile::kTile;
  static constexpr int kColumns = Tile::kColumns;
  static constexpr int kSlice = Tile::kSlice;
  static constexpr int kWarpColumns = Tile::kWarpColumns;
  static constexpr int kTotalBytes = kWarpColumns * kTile * int{sizeof(double)};
  static_assert(kTile == kBundle && kBundle % kColumns == 0, "a tile lies in one bundle");
  /// A few classes: what is prepared of a tile fits in shared memory beside the slices. More: it is
  /// read from the first-level cache.
  static constexpr bool kPlanesShared = K > 0;

  static int shared_bytes(int classes, int stages) {
    const int planes = (1 + Criterion::point_size(classes)) * kColumns +
                       Criterion::candidate_size(classes) * kTile;
    return stages * Tile::kStageBytes + kTotalBytes +
           (kPlanesShared ? planes * int{sizeof(float)} : 0);
  }

  template <class Ctx>
  static NTKFAST_DEVICE void body(const Ctx& ctx, const TensorScoreArgs& args) {
    if constexpr (!kByWarps) return;
    const ScoreArgs<float>& score = args.score;
    const int thread = ctx.thread(), lane = thread % 32, warp = thread / 32;
    const int warp_row = Tile::kWarpRows * (warp / kWarpColumns), warp_column = warp % kWarpColumns;
    const TilePlace place =
        place_in_panels(ctx.block_x(), div_up(score.num_candidates, kTile), score.num_groups);
    const int64_t c0 = place.row * kTile, group = place.col;
    const int64_t num_tiles = div_up(score.num_evaluation, kColumns);
    const int64_t first_tile = group * score.tiles_per_group;
    const int64_t tiles =
        (first_tile + score.tiles_per_group < num_tiles ? first_tile + score.tiles_per_group
                                                        : num_tiles) -
        first_tile;
    const int slices = args.points.depth_bytes > kSlice
                           ? static_cast<int>(div_up(args.points.depth_bytes, kSlice))
                           : 1;
    const int64_t steps = tiles * slices;

    const int k = score.classes;
    const int point_planes = 1 + Criterion::point_size(k);
    const int candidate_planes = Criterion::candidate_size(k);
    const int stages = args.stages, totals_at = stages * Tile::kStageBytes;
    const int planes_at = totals_at + kTotalBytes;
    const auto totals = ctx.template shared<double>(totals_at, kWarpColumns * kTile);
    const auto slice_memory = ctx.template shared<unsigned char>(0, totals_at);
    // Of candidates, then of points.
    const int shared_numbers =
        kPlanesShared ? candidate_planes * kTile + point_planes * kColumns : 0;
    const auto planes = ctx.template shared<float>(planes_at, shared_numbers);
    const auto plane_bytes =
        ctx.template shared<unsigned char>(planes_at, shared_numbers * int{sizeof(float)});
    const float* const prepared = score.prepared + bundle_place(c0, candidate_planes);

    if (lane % 4 == 0) {  // these slots belong to this thread alone
      NTKFAST_UNROLL_DEVICE
      for (int r = 0; r < Tile::kRows; ++r)
        totals[warp_column * kTile + warp_row + 8 * r + lane / 4] = 0.0;
    }
    if (kPlanesShared) copy_planes<kTile, kThreads>(ctx, plane_bytes, prepared, candidate_planes);

    typename Tile::LeftSource candidate_rows;
    typename Tile::RightSource point_rows;
    candidate_rows.find(thread, args.candidates, args.candidate_rows, c0, score.num_candidates);
    int next_slice = 0, next_stage = 0;
    int64_t next_tile = first_tile;
    const auto issue = [&] {  // the next slice
      if (next_slice == 0)
        point_rows.find(thread, args.points, args.point_rows, next_tile * kColumns,
                        score.num_evaluation);
      const auto stage = slice_memory + next_stage * Tile::kStageBytes;
      next_stage = next_stage + 1 < stages ? next_stage + 1 : 0;
      Tile::copy_slice(ctx, args.candidates, candidate_rows, next_slice, stage);
      Tile::copy_slice(ctx, args.points, point_rows, next_slice, stage + kTile * kSlice);
      if (++next_slice == slices) {
        next_slice = 0;
        ++next_tile;
      }
    };
    NTKFAST_KEEP_LOOP
    for (int s = 0; s < stages - 1; ++s) {
      if (s < steps) issue();
      ctx.commit_copies();
    }

    int64_t step = 0;
    int this_stage = 0;
    for (int64_t t = 0; t < tiles; ++t) {
      const int64_t x0 = (first_tile + t) * kColumns;
      const float* const points = score.points + bundle_place(x0, point_planes);
      typename Tile::Sums sums, part;
      clear_sums(sums);
      if constexpr (Products::kSplit) clear_sums(part);
      NTKFAST_KEEP_LOOP
      for (int slice = 0; slice < slices; ++slice, ++step) {
        if (stages == 2) {
          ctx.template wait_copies<0>();
        } else {
          ctx.template wait_copies<1>();
        }
        ctx.barrier();
        // Everybody has finished the previous slice, and before the first one the previous tile.
        if (kPlanesShared && slice == 0)
          copy_planes<kColumns, kThreads>(
              ctx, plane_bytes + candidate_planes * kTile * int64_t{sizeof(float)}, points,
              point_planes);
        if (step + stages - 1 < steps) issue();
        ctx.commit_copies();
        const auto stage = slice_memory + this_stage * Tile::kStageBytes;
        this_stage = this_stage + 1 < stages ? this_stage + 1 : 0;
        const auto left = stage + warp_row * kSlice;
        const auto right = stage + (kTile + 32 * warp_column) * kSlice;
        if constexpr (Products::kSplit) {
          Tile::multiply_slice(ctx, left, right, lane, part);
          if ((slice + 1) % Products::kSummedSlices == 0 || slice + 1 == slices)
            Tile::move_sums(sums, part);
        } else {  // registers do not hold sums of their own; less is cut off than rounding loses
          Tile::multiply_slice(ctx, left, right, lane, sums);
        }
      }
      if (kPlanesShared && slices < stages) {  // otherwise a wait above has covered the planes
        ctx.template wait_copies<0>();
        ctx.barrier();
      }
      scale_sums<Tile>(args, c0, x0, thread, sums);
      if constexpr (kPlanesShared) {
        epilogue<kColumns>(ctx, score, c0, x0, planes + candidate_planes * kTile, planes, totals,
                           sums);
      } else {
        epilogue<kBundle>(ctx, score, c0, x0, points, prepared, totals, sums);
      }
    }
    ctx.template wait_copies<0>();
    ctx.barrier();
    if (thread < kTile && c0 + thread < score.num_candidates) {
      double sum = 0;
      NTKFAST_UNROLL_DEVICE
      for (int w = 0; w < kWarpColumns; ++w) sum += totals[w * kTile + thread];
      score.partial[group * score.padded_candidates + c0 + thread] = sum;
    }
  }

 private:
  /// kCount neighbouring pairs, chosen by comparisons: registers cannot be indexed.
  template <int kCount, int N>
  static NTKFAST_DEVICE Lanes<float, 2 * kCount> piece_of(const Pair<float> (&pairs)[N],
                                                          int piece) {
    Lanes<float, 2 * kCount> values;
    NTKFAST_UNROLL_DEVICE
    for (int i = 0; i < N; ++i) {
      NTKFAST_UNROLL_DEVICE
      for (int lane = 0; lane < 2; ++lane) {
        float& value = values.v[2 * (i % kCount) + lane];
        value = i < kCount || i / kCount == piece ? pairs[i].v[lane] : value;
      }
    }
    return values;
  }
  /// totals += the criterion of every pair of the warp's part, summed over its columns.
  template <int kPointStride, class Ctx, class Points, class Candidates, class Totals>
  static NTKFAST_DEVICE void epilogue(const Ctx& ctx, const ScoreArgs<float>& score, int64_t c0,
                                      int64_t x0, Points points, Candidates candidates,
                                      Totals totals, typename Tile::Sums& sums) {
    const int lane = ctx.thread() % 32, warp = ctx.thread() / 32;
    const int first_row = Tile::row(ctx.thread()), first_col = Tile::col(ctx.thread());
    constexpr int kPairs = K == 1 ? Tile::kPairs : 1;  // at once, as registers allow
    using Scores = RowScores<Criterion, K, Tile::kPairs, kPairs, kPointStride>;
    const int pieces = Scores::pieces(score.num_evaluation - x0 - Tile::col(32 * warp));
    // A loop over the rows: unrolled over all pairs, the code would not fit the instruction cache.
    NTKFAST_KEEP_LOOP
    for (int r = 0; r < Tile::kRows; ++r) {
      // The warp has no candidate here. A lane without one scores zeros, which are nobody's.
      if (c0 + Tile::row(32 * warp) + 8 * r >= score.num_candidates) break;
      const int row = first_row + 8 * r;
      const double total = sum_lanes<4>(
          ctx, Scores::sum(score.classes, pieces, points + first_col,
                           CandidateColumn<float, decltype(candidates + row)>{candidates + row},
                           [&](int piece) { return piece_of<kPairs>(sums[0], piece); }));
      if (lane % 4 == 0) totals[(warp % kWarpColumns) * kTile + row] += total;
      NTKFAST_UNROLL_DEVICE
      for (int i = 0; i < Tile::kRows - 1; ++i) {  // registers cannot be indexed by r
        NTKFAST_UNROLL_DEVICE
        for (int n = 0; n < Tile::kPairs; ++n) sums[i][n] = sums[i + 1][n];
      }
    }
  }
};

template <class Products, class Criterion, int K, class Launcher>
void launch_pairs_tensor(Launcher& launcher, TensorScoreArgs args) {
  using Kernel = ScorePairsTensor<Products, Criterion, K>;
  const int classes = args.score.classes;
  // A multiprocessor holds 1 KB more than a block may have, and takes as much for each block.
  // What blocks do not take is first-level cache, where the planes are that are not shared.
  constexpr int kBlocks = Kernel::kResidentBlocks;
  const int room = (launcher.shared_memory() + 1024) / kBlocks - 1024;
  args.stages = Kernel::shared_bytes(classes, 3) <= room && Kernel::kPlanesShared ? 3 : 2;
  args.score.tiles_per_group *= kTensorTile / Kernel::kColumns;
  launcher.template run<Kernel>(
      {div_up(args.score.num_candidates, kTensorTile) * args.score.num_groups, 1},
      Kernel::shared_bytes(classes, args.stages), args);
}

}  // namespace
}  // namespace ntkfast
