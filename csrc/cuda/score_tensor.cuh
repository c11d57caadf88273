// Feature-space scoring on tensor cores: mma.sync fed by cp.async, the criterion in the epilogue,
// from the same prepared points and candidates as the reference kernel of score.cuh.
//
// A block scores 128 candidates against one group of tiles of 128 points. Its 8 warps hold 64 x 32
// sums each. Rows of psi stream through kStages slices of 128 bytes in shared memory; the stream
// runs on into the next tile while the criterion of this one is computed. Rows of a slice are eight
// chunks of 16 bytes, chunk c of row r at place c ^ (r % 8), so that neither the copies nor
// ldmatrix meet a bank twice.
#pragma once

#include "cuda/score.cuh"

namespace ntkfast {
namespace {

/// Candidates, and points, of a block.
constexpr int kTensorTile = 128;

/// How products are formed; sums are float32 always.
struct Bf16Products {  // psi in bfloat16: exact products
  using Element = BFloat16;
  using Operand = Bf16;
  static constexpr bool kSplit = false;
};
struct Tf32Products {  // psi in float32, rounded to tf32
  using Element = float;
  using Operand = Tf32;
  static constexpr bool kSplit = false;
};
/// psi in float32 as a sum of two tf32 numbers; the product of the small parts is dropped: nearly
/// float32's accuracy.
struct SplitTf32Products {
  using Element = float;
  using Operand = Tf32;
  static constexpr bool kSplit = true;
};

/// The reference kernel's arguments, with psi in the element type of the products.
struct TensorScoreArgs {
  ScoreArgs<float> score;  // its covariance part is unused
  const void* features;
  int64_t row_bytes;    // from one row of psi to the next
  int64_t depth_bytes;  // of one row
  bool aligned;         // rows start at multiples of 16 bytes
};

template <class Products, class Criterion, int K>
struct ScorePairsTensor {
  static constexpr int kThreads = 256;
  static constexpr int kTile = kTensorTile;
  static constexpr int kStages = 3;
  static constexpr int kSlice = 128;  // bytes of a row
  static constexpr int kChunks = kSlice / 16;
  static constexpr int kStageBytes = 2 * kTile * kSlice;
  static constexpr int kWarpColumns = 4;  // 2 x 4 warps
  static constexpr int kTotals = kStages * kStageBytes;
  static constexpr int kPlanes = kTotals + kWarpColumns * kTile * int{sizeof(double)};
  /// A few classes: what is prepared of a tile fits in shared memory beside the slices. More: it is
  /// read from the first-level cache.
  static constexpr bool kPlanesShared = K > 0;

  static int shared_bytes(int classes) {
    const int planes = 1 + Criterion::point_size(classes) + Criterion::candidate_size(classes);
    return kPlanes + (kPlanesShared ? planes * kTile * int{sizeof(float)} : 0);
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
    const int slices =
        args.depth_bytes > kSlice ? static_cast<int>(div_up(args.depth_bytes, kSlice)) : 1;
    const int64_t steps = tiles * slices;

    const int k = score.settings.classes;
    const int point_planes = 1 + Criterion::point_size(k);
    const int candidate_planes = Criterion::candidate_size(k);
    const auto totals = ctx.template shared<double>(kTotals, kWarpColumns * kTile);
    const auto slice_memory = ctx.template shared<unsigned char>(0, kStages * kStageBytes);
    const int shared_planes = kPlanesShared ? point_planes + candidate_planes : 0;
    const auto planes = ctx.template shared<float>(kPlanes, shared_planes * kTile);
    const auto plane_bytes =
        ctx.template shared<unsigned char>(kPlanes, shared_planes * kTile * int{sizeof(float)});
    const auto candidate_bytes = plane_bytes + point_planes * kTile * int64_t{sizeof(float)};

    if (lane % 4 == 0) {  // these slots belong to this thread alone
      NTKFAST_UNROLL_DEVICE
      for (int r = 0; r < 8; ++r) totals[warp_column * kTile + warp_row + 8 * r + lane / 4] = 0.0;
    }
    if (kPlanesShared)
      copy_planes(ctx, candidate_bytes, score.prepared + c0, score.candidate_ld, candidate_planes);

    // This thread copies the chunk thread % 8 of rows thread / 8 + 32 i, of both operands.
    int64_t candidate_rows[4], point_rows[4];
    load_rows(score.candidates, c0 + thread / kChunks, score.num_candidates, candidate_rows);
    int next_slice = 0;
    int64_t next_tile = 0;
    const auto issue = [&](int64_t step) {  // slices are issued in order
      if (next_slice == 0)
        load_rows(score.evaluation, (first_tile + next_tile) * kTile + thread / kChunks,
                  score.num_evaluation, point_rows);
      const auto stage = slice_memory + (step % kStages) * kStageBytes;
      copy_slice(ctx, args, candidate_rows, next_slice, stage);
      copy_slice(ctx, args, point_rows, next_slice, stage + kTile * kSlice);
      if (++next_slice == slices) {
        next_slice = 0;
        ++next_tile;
      }
    };
    NTKFAST_UNROLL_DEVICE
    for (int s = 0; s < kStages - 1; ++s) {
      if (s < steps) issue(s);
      ctx.commit_copies();
    }

    int64_t step = 0;
    for (int64_t t = 0; t < tiles; ++t) {
      const int64_t x0 = (first_tile + t) * kTile;
      // sums[r][n]: row 8 r + lane / 4, columns 8 n + 2 (lane % 4), + 1 of the warp's part
      Pair<float> sums[8][4];
      NTKFAST_UNROLL_DEVICE
      for (int r = 0; r < 8; ++r) {
        NTKFAST_UNROLL_DEVICE
        for (int n = 0; n < 4; ++n) sums[r][n] = Pair<float>(0.0f);
      }
      NTKFAST_KEEP_LOOP
      for (int slice = 0; slice < slices; ++slice, ++step) {
        ctx.template wait_copies<kStages - 2>();
        ctx.barrier();
        // Everybody has finished the previous slice, and before the first one the previous tile.
        if (kPlanesShared && slice == 0)
          copy_planes(ctx, plane_bytes, score.points + x0, score.point_ld, point_planes);
        if (step + kStages - 1 < steps) issue(step + kStages - 1);
        ctx.commit_copies();
        const auto stage = slice_memory + (step % kStages) * kStageBytes;
        multiply_slice(ctx, stage + warp_row * kSlice, stage + (kTile + 32 * warp_column) * kSlice,
                       lane, sums);
      }
      if (kPlanesShared && slices < kStages) {  // otherwise a wait above has covered the planes
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
  /// Rows of psi behind tile rows first + 32 i; -1 beyond the last one.
  static NTKFAST_DEVICE void load_rows(const int64_t* index, int64_t first, int64_t count,
                                       int64_t (&rows)[4]) {
    NTKFAST_UNROLL_DEVICE
    for (int i = 0; i < 4; ++i) {
      const int64_t place = first + 32 * i;
      rows[i] = place >= count ? -1 : index ? index[place] : place;
    }
  }

  /// Starts copying one slice of the rows into shared memory; what lies beyond the data becomes
  /// zero.
  template <class Ctx, class Memory>
  static NTKFAST_DEVICE void copy_slice(const Ctx& ctx, const TensorScoreArgs& args,
                                        const int64_t (&rows)[4], int slice, Memory to) {
    const int row = ctx.thread() / kChunks, chunk = ctx.thread() % kChunks;
    const int64_t begin = int64_t{slice} * kSlice + chunk * 16;
    const int64_t left = args.depth_bytes - begin;
    const int valid = left >= 16 ? 16 : left > 0 ? static_cast<int>(left) : 0;
    NTKFAST_UNROLL_DEVICE
    for (int i = 0; i < 4; ++i) {
      const int r = row + 32 * i;
      const auto place = to + (r * kSlice + (chunk ^ (r % kChunks)) * 16);
      const bool inside = rows[i] >= 0 && valid > 0;
      const unsigned char* from = static_cast<const unsigned char*>(args.features) +
                                  (inside ? rows[i] * args.row_bytes + begin : 0);
      if (args.aligned) {
        ctx.copy_async(place, from, inside ? valid : 0);
      } else {
        NTKFAST_UNROLL_DEVICE
        for (int e = 0; e < 16; e += int{sizeof(typename Products::Element)}) {
          typename Products::Element value{};
          if (inside && e < valid)
            value = *reinterpret_cast<const typename Products::Element*>(from + e);
          store_element(place, e, value);
        }
      }
    }
  }
  template <class Memory, class Element>
  static NTKFAST_DEVICE void store_element(Memory to, int offset, Element value) {
    unsigned char bytes[sizeof(Element)];
    memcpy(bytes, &value, sizeof value);
    NTKFAST_UNROLL_DEVICE
    for (int b = 0; b < int{sizeof(Element)}; ++b) to[offset + b] = bytes[b];
  }

  /// Starts copying 128 numbers of each prepared plane.
  template <class Ctx, class Memory>
  static NTKFAST_DEVICE void copy_planes(const Ctx& ctx, Memory to, const float* from, int64_t ld,
                                         int planes) {
    constexpr int kPieces = kTile * int{sizeof(float)} / 16;
    for (int i = ctx.thread(); i < planes * kPieces; i += kThreads)
      ctx.copy_async(to + i * 16, from + (i / kPieces) * ld + (i % kPieces) * 4, 16);
  }

  /// sums += A B^T over one slice: 64 rows of `a`, 32 rows of `b`, four steps of 32 bytes.
  template <class Ctx, class Memory>
  static NTKFAST_DEVICE void multiply_slice(const Ctx& ctx, Memory a, Memory b, int lane,
                                            Pair<float> (&sums)[8][4]) {
    const int row = lane % 8, matrix = lane / 8;
    NTKFAST_UNROLL_DEVICE
    for (int s = 0; s < kSlice / 32; ++s) {
      // Registers of A: rows 0-7 and 8-15 of the first 16 bytes, then of the second. Of B: first
      // and second 16 bytes of columns 0-7, then of columns 8-15.
      uint32_t right[2][4], right_small[2][4];
      NTKFAST_UNROLL_DEVICE
      for (int n = 0; n < 2; ++n) {
        const int r = 16 * n + row + 8 * (matrix / 2);
        ctx.load_matrices(b + (r * kSlice + ((2 * s + matrix % 2) ^ row) * 16), right[n]);
        round_operand(ctx, right[n], right_small[n]);
      }
      NTKFAST_UNROLL_DEVICE
      for (int m = 0; m < 4; ++m) {
        uint32_t left[4], left_small[4];
        const int r = 16 * m + row + 8 * (matrix % 2);
        ctx.load_matrices(a + (r * kSlice + ((2 * s + matrix / 2) ^ row) * 16), left);
        round_operand(ctx, left, left_small);
        NTKFAST_UNROLL_DEVICE
        for (int n = 0; n < 4; ++n) {
          const int i = n / 2, j = 2 * (n % 2);
          float c[4] = {sums[2 * m][n].v[0], sums[2 * m][n].v[1], sums[2 * m + 1][n].v[0],
                        sums[2 * m + 1][n].v[1]};
          if constexpr (Products::kSplit) {  // small terms first
            ctx.multiply(Tf32{}, c, left_small, right[i][j], right[i][j + 1]);
            ctx.multiply(Tf32{}, c, left, right_small[i][j], right_small[i][j + 1]);
          }
          ctx.multiply(typename Products::Operand{}, c, left, right[i][j], right[i][j + 1]);
          sums[2 * m][n].v[0] = c[0];
          sums[2 * m][n].v[1] = c[1];
          sums[2 * m + 1][n].v[0] = c[2];
          sums[2 * m + 1][n].v[1] = c[3];
        }
      }
    }
  }

  /// Rounds float32 numbers to what the tensor cores read, instead of letting them cut bits off.
  template <class Ctx>
  static NTKFAST_DEVICE void round_operand(const Ctx& ctx, uint32_t (&value)[4],
                                           uint32_t (&small)[4]) {
    if constexpr (sizeof(typename Products::Element) == sizeof(float)) {
      NTKFAST_UNROLL_DEVICE
      for (int i = 0; i < 4; ++i) {
        const float exact = float_of(value[i]), rounded = ctx.round_tf32(exact);
        value[i] = bits_of(rounded);
        if constexpr (Products::kSplit) small[i] = bits_of(ctx.round_tf32(exact - rounded));
      }
    }
  }

  /// totals += the criterion of every pair of the warp's part, summed over its columns.
  template <class Ctx, class Points, class Candidates, class Stride, class Totals>
  static NTKFAST_DEVICE void epilogue(const Ctx& ctx, const ScoreArgs<float>& score, int64_t c0,
                                      int64_t x0, Points points, Candidates candidates,
                                      Stride point_ld, Stride candidate_ld, Totals totals,
                                      Pair<float> (&sums)[8][4]) {
    const int lane = ctx.thread() % 32, warp = ctx.thread() / 32;
    const int first_row = 64 * (warp / kWarpColumns) + lane / 4;
    const int first_col = 32 * (warp % kWarpColumns) + 2 * (lane % 4);
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
          const Pair<float> value =
              Criterion::template value<K>(score.settings.classes, sums[0][n], point, candidate,
                                           static_cast<Pair<float>*>(nullptr));
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
/// workspace.
template <class Products, class Criterion, int K, class Launcher>
void launch_score_tensor_as(Launcher& launcher, TensorScoreArgs args, void* workspace) {
  ScoreArgs<float>& score = args.score;
  if (score.num_candidates == 0) return;
  place_workspace(score, workspace, kTensorTile);
  if (score.num_evaluation > 0) {
    launch_prepare(launcher, score);
    launch_pairs<ScorePairsTensor<Products, Criterion, K>>(
        launcher, args, score.num_candidates, score.num_groups, score.settings.classes);
  }
  launcher.template run<SumGroups>({div_up(score.num_candidates, 128), 1}, 0, score);
}

/// The whole call on tensor cores.
template <class Products, class Launcher>
void launch_score_tensor(Launcher& launcher, const TensorScoreArgs& args, void* workspace) {
  visit_criterion(args.score.criterion, [&](auto criterion) {
    using Criterion = decltype(criterion);
    visit_classes<Criterion>(args.score.settings.classes, [&](auto classes) {
      launch_score_tensor_as<Products, Criterion, decltype(classes)::value>(launcher, args,
                                                                            workspace);
    });
  });
}

}  // namespace
}  // namespace ntkfast
