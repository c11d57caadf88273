// Feature-space scoring on tensor cores: mma.sync fed by cp.async, the criterion in the epilogue,
// from the same prepared points and candidates as the reference kernel of score.cuh.
//
// A block scores 128 candidates against one group of tiles of 128 points. The stream of slices of
// psi (tensor_tile.cuh) runs on into the next tile while the criterion of this one is computed. It
// has three stages, or two where shared memory ends at 99 KB, as on GPUs made for graphics.
#pragma once

#include "cuda/score.cuh"
#include "cuda/tensor_tile.cuh"

namespace ntkfast {
namespace {

/// The reference kernel's arguments, with psi in the element type of the products.
struct TensorScoreArgs {
  ScoreArgs<float> score;  // its covariance part is unused
  TensorOperand features;
  int stages;  // slices in shared memory: 2 or 3
};

template <class Products, class Criterion, int K>
struct ScorePairsTensor {
  using Tile = TensorTile<Products>;
  static constexpr int kThreads = Tile::kThreads;
  static constexpr int kTile = kTensorTile;
  static constexpr int kSlice = Tile::kSlice;
  static constexpr int kWarpColumns = Tile::kWarpColumns;
  static constexpr int kTotalBytes = kWarpColumns * kTile * int{sizeof(double)};
  /// A few classes: what is prepared of a tile fits in shared memory beside the slices. More: it is
  /// read from the first-level cache.
  static constexpr bool kPlanesShared = K > 0;

  static int shared_bytes(int classes, int stages) {
    const int planes = 1 + Criterion::point_size(classes) + Criterion::candidate_size(classes);
    return stages * Tile::kStageBytes + kTotalBytes +
           (kPlanesShared ? planes * kTile * int{sizeof(float)} : 0);
  }

  template <class Ctx>
  static NTKFAST_DEVICE void body(const Ctx& ctx, const TensorScoreArgs& args) {
    const ScoreArgs<float>& score = args.score;
    const int thread = ctx.thread(), lane = thread % 32, warp = thread / 32;
    const int warp_row = 64 * (warp / kWarpColumns), warp_column = warp % kWarpColumns;
    const int64_t c0 = ctx.block_x() * kTile, group = ctx.block_y();
    const int64_t num_tiles = div_up(score.num_evaluation, kTile);
    const int64_t first_tile = group * score.tiles_per_group;
    const int64_t tiles =
        (first_tile + score.tiles_per_group < num_tiles ? first_tile + score.tiles_per_group
                                                        : num_tiles) -
        first_tile;
    const int slices = args.features.depth_bytes > kSlice
                           ? static_cast<int>(div_up(args.features.depth_bytes, kSlice))
                           : 1;
    const int64_t steps = tiles * slices;

    const int k = score.classes;
    const int point_planes = 1 + Criterion::point_size(k);
    const int candidate_planes = Criterion::candidate_size(k);
    const int stages = args.stages, totals_at = stages * Tile::kStageBytes;
    const int planes_at = totals_at + kTotalBytes;
    const auto totals = ctx.template shared<double>(totals_at, kWarpColumns * kTile);
    const auto slice_memory = ctx.template shared<unsigned char>(0, totals_at);
    const int shared_planes = kPlanesShared ? point_planes + candidate_planes : 0;
    const auto planes = ctx.template shared<float>(planes_at, shared_planes * kTile);
    const auto plane_bytes =
        ctx.template shared<unsigned char>(planes_at, shared_planes * kTile * int{sizeof(float)});
    const auto candidate_bytes = plane_bytes + point_planes * kTile * int64_t{sizeof(float)};

    if (lane % 4 == 0) {  // these slots belong to this thread alone
      NTKFAST_UNROLL_DEVICE
      for (int r = 0; r < 8; ++r) totals[warp_column * kTile + warp_row + 8 * r + lane / 4] = 0.0;
    }
    if (kPlanesShared)
      copy_planes(ctx, candidate_bytes, score.prepared + c0, score.candidate_ld, candidate_planes);

    // This thread copies the chunk thread % 8 of rows thread / 8 + 32 i, of both operands.
    int64_t candidate_rows[4], point_rows[4];
    Tile::load_rows(score.candidates, c0 + thread / Tile::kChunks, score.num_candidates,
                    candidate_rows);
    int next_slice = 0, next_stage = 0;
    int64_t next_tile = 0;
    const auto issue = [&] {  // the next slice
      if (next_slice == 0)
        Tile::load_rows(score.evaluation, (first_tile + next_tile) * kTile + thread / Tile::kChunks,
                        score.num_evaluation, point_rows);
      const auto stage = slice_memory + next_stage * Tile::kStageBytes;
      next_stage = next_stage + 1 < stages ? next_stage + 1 : 0;
      Tile::copy_slice(ctx, args.features, candidate_rows, next_slice, stage);
      Tile::copy_slice(ctx, args.features, point_rows, next_slice, stage + kTile * kSlice);
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
      const int64_t x0 = (first_tile + t) * kTile;
      typename Tile::Sums sums;
      clear_sums(sums);
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
          copy_planes(ctx, plane_bytes, score.points + x0, score.point_ld, point_planes);
        if (step + stages - 1 < steps) issue();
        ctx.commit_copies();
        const auto stage = slice_memory + this_stage * Tile::kStageBytes;
        this_stage = this_stage + 1 < stages ? this_stage + 1 : 0;
        Tile::multiply_slice(ctx, stage + warp_row * kSlice,
                             stage + (kTile + 32 * warp_column) * kSlice, lane, sums);
      }
      if (kPlanesShared && slices < stages) {  // otherwise a wait above has covered the planes
        ctx.template wait_copies<0>();
        ctx.barrier();
      }
      if constexpr (kPlanesShared) {
        const auto candidates = planes + point_planes * kTile;
        epilogue(ctx, score, c0, x0, planes, candidates, kTile, kTile, totals, sums);
      } else {
        epilogue(ctx, score, c0, x0, score.points + x0,
                 static_cast<const float*>(score.prepared) + c0, score.point_ld, score.candidate_ld,
                 totals, sums);
      }
    }
    ctx.template wait_copies<0>();
    ctx.barrier();
    if (thread < kTile && c0 + thread < score.num_candidates) {
      double sum = 0;
      NTKFAST_UNROLL_DEVICE
      for (int w = 0; w < kWarpColumns; ++w) sum += totals[w * kTile + thread];
      score.partial[group * score.candidate_ld + c0 + thread] = sum;
    }
  }

 private:
  /// Starts copying 128 numbers of each prepared plane.
  template <class Ctx, class Memory>
  static NTKFAST_DEVICE void copy_planes(const Ctx& ctx, Memory to, const float* from, int64_t ld,
                                         int planes) {
    constexpr int kPieces = kTile * int{sizeof(float)} / 16;
    for (int i = ctx.thread(); i < planes * kPieces; i += kThreads)
      ctx.copy_async(to + i * 16, from + (i / kPieces) * ld + (i % kPieces) * 4, 16);
  }

  /// totals += the criterion of every pair of the warp's part, summed over its columns.
  template <class Ctx, class Points, class Candidates, class Stride, class Totals>
  static NTKFAST_DEVICE void epilogue(const Ctx& ctx, const ScoreArgs<float>& score, int64_t c0,
                                      int64_t x0, Points points, Candidates candidates,
                                      Stride point_ld, Stride candidate_ld, Totals totals,
                                      typename Tile::Sums& sums) {
    const int lane = ctx.thread() % 32, warp = ctx.thread() / 32;
    const int first_row = Tile::row(ctx.thread()), first_col = Tile::col(ctx.thread());
    // A loop over the rows: unrolled over all 32 pairs, the code would not fit the instruction
    // cache.
    NTKFAST_KEEP_LOOP
    for (int r = 0; r < 8; ++r) {
      const int row = first_row + 8 * r;
      Pair<float> sum(0.0f);
      if (c0 + row < score.num_candidates) {
        const CandidateColumn<float, Candidates, Stride> candidate{candidates + row, candidate_ld};
        NTKFAST_UNROLL_DEVICE
        for (int n = 0; n < 4; ++n) {
          const int col = first_col + 8 * n;
          if (x0 + col >= score.num_evaluation) continue;
          const auto weights = points + col;
          const PointPair<Points, Stride> point{weights + point_ld, point_ld};
          const Pair<float> value = Criterion::template value<K>(
              score.classes, sums[0][n], point, candidate, static_cast<Pair<float>*>(nullptr));
          sum = fma_of(load_pair(weights), value, sum);
        }
      }
      const float total = sum_lanes<4>(ctx, sum.v[0] + sum.v[1]);
      if (lane % 4 == 0) totals[(warp % kWarpColumns) * kTile + row] += static_cast<double>(total);
      NTKFAST_UNROLL_DEVICE
      for (int i = 0; i < 7; ++i) {  // registers cannot be indexed by r: move the next row down
        NTKFAST_UNROLL_DEVICE
        for (int n = 0; n < 4; ++n) sums[i][n] = sums[i + 1][n];
      }
    }
  }
};

/// The whole call with one criterion and number of classes (see visit_classes). `args` lacks its
/// workspace and stages.
template <class Products, class Criterion, int K, class Launcher>
void launch_score_tensor_as(Launcher& launcher, TensorScoreArgs args, void* workspace) {
  ScoreArgs<float>& score = args.score;
  if (score.num_candidates == 0) return;
  place_workspace(score, workspace, kTensorTile);
  if (score.num_evaluation > 0) {
    launch_prepare(launcher, score);
    using Kernel = ScorePairsTensor<Products, Criterion, K>;
    const int classes = score.classes;
    args.stages = Kernel::shared_bytes(classes, 3) <= launcher.shared_memory() ? 3 : 2;
    launcher.template run<Kernel>({div_up(score.num_candidates, kTensorTile), score.num_groups},
                                  Kernel::shared_bytes(classes, args.stages), args);
  }
  launcher.template run<SumGroups>({div_up(score.num_candidates, 128), 1}, 0, score);
}

/// The whole call on tensor cores.
template <class Products, class Launcher>
void launch_score_tensor(Launcher& launcher, const TensorScoreArgs& args, void* workspace) {
  visit_scalar(args.score.criterion, [&](auto criterion) {
    using Criterion = decltype(criterion);
    visit_classes<Criterion>(args.score.classes, [&](auto classes) {
      launch_score_tensor_as<Products, Criterion, decltype(classes)::value>(launcher, args,
                                                                            workspace);
    });
  });
}

}  // namespace
}  // namespace ntkfast
