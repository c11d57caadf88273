#include "cpu/score_blocks.h"

#include <algorithm>
#include <string>

#include "core/check.h"
#include "cpu/buffer.h"
#include "cpu/kernels.h"
#include "cpu/score.h"
#include "cpu/thread_pool.h"
#include "math/criteria.h"

namespace ntkfast {
namespace {

/// Groups of evaluation points whose sums are added up at the end. Fixed, so that their order is
/// too.
constexpr std::int64_t kGroups = 64;
/// Tiles of a group times outputs, if there are so many: rows of the covariance are read that far
/// at a stretch.
constexpr std::int64_t kStretch = 160;
/// Multiply-adds that a unit of work should have: large beside dealing it out, small beside the
/// patience of somebody who presses Ctrl-C.
constexpr double kUnitWork = 1e7;

const std::int64_t* blocks(const TensorView& view, const char* name, std::int64_t count,
                           std::int64_t available) {
  if (view.ndim == 0) {
    require(available >= count, "covariance: has " + std::to_string(available) + " block " + name +
                                    " for " + std::to_string(count) + " points");
    return nullptr;
  }
  const std::int64_t* indices = contiguous<std::int64_t>(view, name, {count});
  check_indices(indices, count, available, name);
  return indices;
}

void refuse(const char* argument, std::int64_t position, std::int64_t point) {
  throw InvalidArgument(std::string(argument) + ": block " + std::to_string(position) + " (point " +
                        std::to_string(point) +
                        ") plus its noise is not positive definite: it is no covariance, or the "
                        "noise is too small beside its rounding errors");
}

template <class T>
void score_blocks(const ScoreBlocksKernels<T>& kernels, const TensorView& covariance,
                  const TensorView& rows, const TensorView& columns,
                  const TensorView& evaluation_variance, const ScoreCall& call,
                  const Interrupt& interrupted) {
  ScoreBlocks<T> score{};
  const std::int64_t num_points = call.mean.ndim == 2 ? call.mean.shape[0] : -1;
  static_cast<ScoreInputs&>(score) = read_score_call(call, num_points);
  require(!(criterion_traits(score.criterion) & kReadsCovered),
          "criterion '" + call.criterion + "' is of a scalar kernel, and this one has blocks");
  const std::int64_t k = score.classes, num_candidates = score.num_candidates,
                     num_evaluation = score.num_evaluation;
  const MatrixView<T> S = matrix<T>(covariance, "covariance", -1, -1);
  require(S.rows % k == 0 && S.cols % k == 0, "covariance: expected blocks of " +
                                                  std::to_string(k) + " x " + std::to_string(k) +
                                                  ", got " + shape_text(covariance));
  score.covariance = S.data;
  score.covariance_stride = S.row_stride;
  score.rows = blocks(rows, "rows", num_candidates, S.rows / k);
  score.columns = blocks(columns, "columns", num_evaluation, S.cols / k);
  score.variance = contiguous<double>(call.variance, "variance", {num_candidates, k, k});
  if (evaluation_variance.ndim > 0)
    score.evaluation_variance =
        contiguous<double>(evaluation_variance, "evaluation_variance", {num_evaluation, k, k});
  require(
      evaluation_variance.ndim > 0 || !(criterion_traits(score.criterion) & kReadsPointVariance),
      "evaluation_variance: criterion '" + call.criterion + "' needs it");
  if (num_candidates == 0 || num_evaluation == 0) return;

  const std::int64_t scratch_bytes = round_up_to(kernels.scratch_bytes(score), 64);
  const Buffer scratch(num_threads() * scratch_bytes);

  const std::int64_t num_tiles = ceil_div(num_evaluation, kernels.tile_cols);
  score.tiles_per_group = std::max(ceil_div(kStretch, k), ceil_div(num_tiles, kGroups));
  score.num_groups = ceil_div(num_tiles, score.tiles_per_group);
  const Buffer points(num_tiles * kernels.point_size(score) * kernels.tile_cols *
                      std::int64_t{sizeof(T)});
  score.points = points.as<T>();
  const Buffer wrong(num_evaluation * std::int64_t{sizeof(bool)});
  score.point_is_wrong = wrong.as<bool>();
  parallel_for(
      num_tiles,
      [&](std::int64_t tile, int worker) {
        kernels.prepare_points(score, tile, scratch.part(worker, scratch_bytes));
      },
      interrupted);
  for (std::int64_t x = 0; x < num_evaluation; ++x)
    if (score.point_is_wrong[x]) refuse("evaluation_variance", x, score.evaluation[x]);

  const Buffer prepared(num_candidates * kernels.candidate_size(score) * std::int64_t{sizeof(T)});
  score.prepared_candidates = prepared.as<T>();
  const Buffer counts(num_candidates * std::int64_t{sizeof(std::int32_t)});
  score.candidate_rows = counts.as<std::int32_t>();
  constexpr std::int64_t kBatch = 16;
  parallel_for(
      ceil_div(num_candidates, kBatch),
      [&](std::int64_t batch, int worker) {
        const std::int64_t end = std::min(num_candidates, (batch + 1) * kBatch);
        for (std::int64_t c = batch * kBatch; c < end; ++c)
          kernels.prepare_candidate(score, c, scratch.part(worker, scratch_bytes));
      },
      interrupted);
  for (std::int64_t c = 0; c < num_candidates; ++c)
    if (score.candidate_rows[c] < 0) refuse("variance", c, score.candidates[c]);

  const Buffer partial(num_candidates * score.num_groups * std::int64_t{sizeof(double)});
  score.partial = partial.as<double>();
  std::fill(score.partial, score.partial + num_candidates * score.num_groups, 0.0);
  const double work =
      static_cast<double>(std::min(num_tiles, score.tiles_per_group) * kernels.tile_cols) *
      static_cast<double>(k * k) * static_cast<double>(k + 16);
  const std::int64_t segment = std::min(
      num_candidates, std::max<std::int64_t>(1, static_cast<std::int64_t>(kUnitWork / work)));
  parallel_for(
      ceil_div(num_candidates, segment) * score.num_groups,
      [&](std::int64_t unit, int worker) {
        const std::int64_t begin = unit / score.num_groups * segment;
        kernels.unit(score, begin, std::min(num_candidates, begin + segment),
                     unit % score.num_groups, scratch.part(worker, scratch_bytes));
      },
      interrupted);
  double* utilities = static_cast<double*>(call.utilities.data);
  for (std::int64_t c = 0; c < num_candidates; ++c)
    for (std::int64_t g = 0; g < score.num_groups; ++g)
      utilities[c] += score.partial[c * score.num_groups + g];
}

}  // namespace

void score_blocks_cpu(const TensorView& covariance, const TensorView& rows,
                      const TensorView& columns, const TensorView& evaluation_variance,
                      const ScoreCall& call, const Interrupt& interrupted) {
  if (covariance.dtype == DType::kFloat64) {
    score_blocks<double>(kernels().score_blocks_double, covariance, rows, columns,
                         evaluation_variance, call, interrupted);
  } else {
    score_blocks<float>(kernels().score_blocks_float, covariance, rows, columns,
                        evaluation_variance, call, interrupted);
  }
}

}  // namespace ntkfast
