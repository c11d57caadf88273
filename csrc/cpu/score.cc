#include "cpu/score.h"

#include <algorithm>

#include "core/check.h"
#include "cpu/buffer.h"
#include "cpu/thread_pool.h"

namespace ntkfast {
namespace {

/// Units of work wanted of a large call. Fixed, so that the order of every sum is too.
constexpr std::int64_t kUnits = 64;
/// Candidates a unit of work should at least have, so that packing its evaluation points is worth
/// it.
constexpr std::int64_t kRowsPerUnit = 1024;

}  // namespace

void check_indices(const std::int64_t* indices, std::int64_t count, std::int64_t num_points,
                   const char* name) {
  for (std::int64_t i = 0; i < count; ++i)
    require(indices[i] >= 0 && indices[i] < num_points,
            std::string(name) + ": index " + std::to_string(indices[i]) + " at position " +
                std::to_string(i) + " is outside [0, " + std::to_string(num_points) + ")");
}

ScoreInputs read_score_call(const ScoreCall& call, std::int64_t num_points) {
  const ScoreInputs score = check_score_call(call, num_points, Device::kCpu);
  check_indices(score.candidates, score.num_candidates, num_points, "candidates");
  check_indices(score.evaluation, score.num_evaluation, num_points, "evaluation");
  double* utilities = static_cast<double*>(call.utilities.data);
  std::fill(utilities, utilities + score.num_candidates, 0.0);
  return score;
}

template <class T>
void run_score(const ScoreKernels<T>& kernels, Score<T> score, std::int64_t num_points,
               const ScoreCall& call, const Interrupt& interrupted) {
  static_cast<ScoreInputs&>(score) = read_score_call(call, num_points);
  score.variance = contiguous<double>(call.variance, "variance", {num_points});
  const std::int64_t num_candidates = score.num_candidates, num_evaluation = score.num_evaluation;
  if (num_candidates == 0 || num_evaluation == 0) return;
  double* utilities = static_cast<double*>(call.utilities.data);

  score.candidate_factor.index = score.candidates;
  score.evaluation_factor.index = score.evaluation;

  const LinalgKernels& tiles = ntkfast::kernels().linalg;
  const std::int64_t num_tiles = ceil_div(num_evaluation, tiles.tile_cols);
  score.tiles_per_group = ceil_div(num_tiles, kUnits);
  score.num_groups = ceil_div(num_tiles, score.tiles_per_group);

  const Buffer points(num_tiles * kernels.point_size(score) * tiles.tile_cols *
                      std::int64_t{sizeof(T)});
  score.points = points.as<T>();
  parallel_for(
      num_tiles, [&](std::int64_t tile, int) { kernels.prepare_points(score, tile); }, interrupted);

  const Buffer prepared(num_candidates * kernels.candidate_size(score) * std::int64_t{sizeof(T)});
  score.prepared_candidates = prepared.as<T>();
  constexpr std::int64_t kBatch = 256;
  parallel_for(
      ceil_div(num_candidates, kBatch),
      [&](std::int64_t batch, int) {
        kernels.prepare_candidates(score, batch * kBatch,
                                   std::min(num_candidates, (batch + 1) * kBatch));
      },
      interrupted);

  const Buffer partial(num_candidates * score.num_groups * std::int64_t{sizeof(double)});
  score.partial = partial.as<double>();
  std::fill(score.partial, score.partial + num_candidates * score.num_groups, 0.0);

  const std::int64_t row_bytes = std::max<std::int64_t>(score.depth, 1) * std::int64_t{sizeof(T)};
  const std::int64_t chunk = round_up_to(
      std::min(num_candidates, std::max(kRowsPerUnit, kPackedBytes / row_bytes)), tiles.tile_rows);
  const Buffer packed(chunk * row_bytes);
  score.packed_candidates = packed.as<T>();
  const std::int64_t scratch_bytes = round_up_to(kernels.scratch_bytes(score), 64);
  const Buffer scratch(num_threads() * scratch_bytes);
  for (std::int64_t begin = 0; begin < num_candidates; begin += chunk) {
    score.chunk_begin = begin;
    score.chunk_rows = std::min(chunk, num_candidates - begin);
    if (score.depth > 0)
      parallel_for(
          ceil_div(score.chunk_rows, tiles.tile_rows),
          [&](std::int64_t tile, int) { kernels.pack_candidates(score, tile); }, interrupted);
    const std::int64_t segments =
        std::min(ceil_div(kUnits, score.num_groups), ceil_div(score.chunk_rows, kRowsPerUnit));
    score.rows_per_segment = round_up_to(ceil_div(score.chunk_rows, segments), tiles.tile_rows);
    const std::int64_t num_segments = ceil_div(score.chunk_rows, score.rows_per_segment);
    parallel_for(
        num_segments * score.num_groups,
        [&](std::int64_t unit, int worker) {
          kernels.unit(score, unit / score.num_groups, unit % score.num_groups,
                       scratch.part(worker, scratch_bytes));
        },
        interrupted);
  }
  for (std::int64_t c = 0; c < num_candidates; ++c)
    for (std::int64_t g = 0; g < score.num_groups; ++g)
      utilities[c] += score.partial[c * score.num_groups + g];
}

template void run_score<float>(const ScoreKernels<float>&, Score<float>, std::int64_t,
                               const ScoreCall&, const Interrupt&);
template void run_score<double>(const ScoreKernels<double>&, Score<double>, std::int64_t,
                                const ScoreCall&, const Interrupt&);

}  // namespace ntkfast
