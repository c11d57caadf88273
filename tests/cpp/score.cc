// The fused drivers against the definition, at sizes around every panel and tile.
#include "cpu/score.h"

#include <algorithm>
#include <limits>

#include "cpu/score_dense.h"
#include "cpu/score_features.h"
#include "math/criteria.h"
#include "oracle.h"
#include "test.h"

namespace ntkfast {
namespace {

using test::expect;
using test::expect_near;
using test::expect_refused;
using test::Matrix;
using test::Random;
using test::view;

/// The arguments of one call, in allocations that end where they do.
struct Problem {
  std::int64_t N, k;
  std::vector<std::int64_t> candidates, evaluation;
  Matrix<double> mean, outputs, label_probs, targets;
  std::vector<double> variance, noise, weights, covered, utilities;
  bool cross_entropy;

  Problem(Random& random, std::int64_t points, std::int64_t classes, std::int64_t num_candidates,
          std::int64_t num_evaluation, bool use_cross_entropy)
      : N(points),
        k(classes),
        mean(random.matrix<double>(points, classes)),
        outputs(random.matrix<double>(points, classes)),
        label_probs(num_candidates, classes),
        targets(num_evaluation, classes),
        variance(static_cast<std::size_t>(points)),
        cross_entropy(use_cross_entropy) {
    for (std::int64_t i = 0; i < num_candidates; ++i) {
      candidates.push_back(random.below(N));
      noise.push_back(i % 7 == 6 ? std::numeric_limits<double>::infinity()
                                 : random.uniform(0.2, 2));
    }
    for (std::int64_t i = 0; i < num_evaluation; ++i) {
      evaluation.push_back(random.below(N));
      weights.push_back(random.uniform());
      covered.push_back(i % 3 ? random.uniform() : 0);
    }
    for (Matrix<double>* rows : {&label_probs, &targets})
      for (std::int64_t i = 0; i < rows->rows; ++i) {
        double total = 0;
        for (std::int64_t j = 0; j < k; ++j) total += (*rows)(i, j) = random.uniform();
        for (std::int64_t j = 0; j < k; ++j) (*rows)(i, j) /= total;
      }
    utilities.assign(candidates.size(), -1);
  }

  ScoreCall call(const std::string& criterion) {
    ScoreCall result;
    result.criterion = criterion;
    result.candidates = view(candidates);
    result.evaluation = view(evaluation);
    result.mean = mean.view();
    result.outputs = outputs.view();
    result.variance = view(variance);
    result.noise = view(noise);
    result.label_probs = label_probs.view();
    result.weights = view(weights);
    if (criterion == "expected_log_loss") result.log_loss_targets = targets.view();
    result.covered = view(covered);
    result.radius = kRadius;
    result.label_scale = label_scale();
    result.loss = cross_entropy ? "cross_entropy" : "squared";
    result.temperature = kTemperature;
    result.ridge = kRidge;
    result.residual_temperature = kResidualTemperature;
    result.utilities = view(utilities);
    return result;
  }

  static constexpr double kTemperature = 0.4, kRidge = 0.3, kResidualTemperature = 2, kRadius = 1.2;
  double label_scale() const { return cross_entropy ? 5 : 1; }

  /// The summand of (candidate i, evaluation point x), and in *slack what a decision that is closer
  /// than `near` may change.
  double summand(const std::string& criterion, std::int64_t i, std::int64_t x, double S,
                 double near, double* slack) const {
    const std::int64_t c = candidates[i], point = evaluation[x];
    const double total = variance[c] + noise[i];
    if (!(criterion_traits(criterion_index(criterion)) & kLookAhead))
      return static_cast<double>(oracle::of_covariance(criterion, S, variance[c], total,
                                                       variance[point], variance[point] + kRidge,
                                                       covered[x], kRadius));
    const auto after = [&](int y) {
      auto f_plus = mean.row(point);
      const auto r =
          oracle::residual(y, mean.row(c), cross_entropy, label_scale(), kResidualTemperature);
      for (std::size_t j = 0; j < r.size(); ++j) f_plus[j] += S / total * r[j];
      return f_plus;
    };
    return static_cast<double>(oracle::look_ahead(criterion, after, outputs.row(point),
                                                  targets.row(x), outputs.row(c),
                                                  label_probs.row(i), kTemperature, near, slack));
  }

  /// Compares the utilities of the first, the last and a few candidates between.
  template <class Covariance>
  void check(const std::string& criterion, Covariance S, double tolerance) const {
    const std::int64_t n = static_cast<std::int64_t>(candidates.size());
    const std::int64_t step = std::max<std::int64_t>(1, n / 4);
    for (std::int64_t i = 0; i < n; i = i == n - 1 || i + step < n ? i + step : n - 1) {
      double sum = 0, slack = 0, size = 0;
      for (std::size_t x = 0; x < evaluation.size(); ++x) {
        double near = 0;
        const std::int64_t column = static_cast<std::int64_t>(x);
        const double value =
            summand(criterion, i, column, S(candidates[i], evaluation[x]), tolerance * 100, &near);
        sum += weights[x] * value;
        size += weights[x] * (1 + std::fabs(value));
        slack += weights[x] * near;
      }
      expect_near(utilities[i], sum, tolerance * size + slack,
                  criterion + " of candidate " + std::to_string(i) + " of " + std::to_string(n) +
                      " with " + std::to_string(evaluation.size()) + " points");
    }
  }
};

template <class T>
constexpr double tolerance() {
  return sizeof(T) == 4 ? 3e-5 : 1e-12;
}

template <class T>
double dot(const Matrix<T>& X, std::int64_t i, std::int64_t j) {
  double sum = 0;
  for (std::int64_t p = 0; p < X.cols; ++p)
    sum += static_cast<double>(X(i, p)) * static_cast<double>(X(j, p));
  return sum;
}

/// Whether a criterion takes part in a problem of this size. Each meets a third of the sizes, and
/// each size a third of the criteria: they share all code that depends on sizes.
bool takes_part(int criterion, std::int64_t size) { return (criterion + size) % 3 == 0; }

template <class T>
void features(std::int64_t candidates, std::int64_t evaluation, std::int64_t d, std::int64_t k) {
  Random random(static_cast<std::uint32_t>(candidates * 7 + evaluation * 3 + d + k));
  const std::int64_t N = 23;
  auto psi = random.matrix<T>(N, d, d % 2);
  for (T& value : psi.data) value /= static_cast<T>(std::sqrt(static_cast<double>(d + 1)));
  Problem problem(random, N, k, candidates, evaluation, (d + k) % 2 == 0);
  for (std::int64_t i = 0; i < N; ++i) problem.variance[i] = dot(psi, i, i);
  for (int index = 0; index < criterion_count(); ++index) {
    if (!takes_part(index, candidates + evaluation + d + k)) continue;
    const std::string criterion = criterion_name(index);
    score_features_cpu(psi.view(), problem.call(criterion), {});
    problem.check(
        criterion, [&](std::int64_t i, std::int64_t j) { return dot(psi, i, j); }, tolerance<T>());
  }
}

template <class T>
void dense(std::int64_t candidates, std::int64_t evaluation, std::int64_t rank, std::int64_t k) {
  Random random(static_cast<std::uint32_t>(candidates * 5 + evaluation * 11 + rank + k));
  const std::int64_t N = 19;
  const auto X = random.matrix<double>(N, N);
  Matrix<T> S(N, N, rank % 3), U(rank, N, rank % 2);
  for (std::int64_t i = 0; i < N; ++i)
    for (std::int64_t j = 0; j < N; ++j) S(i, j) = static_cast<T>((dot(X, i, j) + (i == j)) / N);
  for (T& value : U.data) value = static_cast<T>(random.normal() / (5.0 * (1 + rank)));
  const auto covariance = [&](std::int64_t i, std::int64_t j) {
    double sum = S(i, j);
    for (std::int64_t r = 0; r < rank; ++r) sum -= static_cast<double>(U(r, i)) * U(r, j);
    return sum;
  };
  Problem problem(random, N, k, candidates, evaluation, rank % 2 == 0);
  for (std::int64_t i = 0; i < N; ++i) problem.variance[i] = covariance(i, i);
  for (int index = 0; index < criterion_count(); ++index) {
    if (!takes_part(index, candidates + evaluation + rank + k)) continue;
    const std::string criterion = criterion_name(index);
    score_dense_cpu(S.view(), rank > 0 ? U.view() : TensorView{}, problem.call(criterion), {});
    problem.check(criterion, covariance, tolerance<T>());
  }
}

template <class T>
void every_size() {
  for (const std::int64_t candidates : {0, 1, 13, 15, 29})
    for (const std::int64_t evaluation : {0, 1, 15, 17, 129})
      features<T>(candidates, evaluation, (candidates + evaluation) % 5, 3);
  for (const std::int64_t evaluation : {1, 17}) features<T>(113, evaluation, 4, 3);
  for (const std::int64_t candidates : {1, 15}) features<T>(candidates, 128, 4, 3);
  for (const std::int64_t d : {0, 1, 2, 3, 15, 16, 17, 31, 33, 64, 257}) {
    features<T>(15, 18, d, 2);
    features<T>(5, 130, d, 10);
  }
  for (const std::int64_t k : {2, 4, 5, 10, 11, 26}) features<T>(6, 33, 4, k);
  for (const std::int64_t rank : {0, 1, 2, 3, 16, 17}) {
    dense<T>(15, 129, rank, 2);
    dense<T>(113, 17, rank, 3);
    dense<T>(1, 1, rank, 10);
  }
}
NTKFAST_TEST(score_float) { every_size<float>(); }
NTKFAST_TEST(score_double) { every_size<double>(); }

template <class T>
void many_units(std::int64_t candidates, std::int64_t evaluation, const char* criterion) {
  Random random(5);
  auto psi = random.matrix<T>(8, 1);
  Problem problem(random, 8, 1, candidates, evaluation, false);
  for (std::int64_t i = 0; i < 8; ++i) problem.variance[i] = dot(psi, i, i);
  score_features_cpu(psi.view(), problem.call(criterion), {});
  problem.check(
      criterion, [&](std::int64_t i, std::int64_t j) { return dot(psi, i, j); }, tolerance<T>());
}

/// More than 64 tiles of points, candidates in several segments, and both.
template <class T>
void many_units() {
  many_units<T>(20, 8300, "epig");
  many_units<T>(1060, 200, "epig");
  many_units<T>(1060, 8300, "variance_reduction");
}
NTKFAST_TEST(score_many_units_float) { many_units<float>(); }
NTKFAST_TEST(score_many_units_double) { many_units<double>(); }

/// The extremes of every argument at once: utilities stay finite. The number of classes goes round,
/// so that it meets every two of the other arguments.
template <class T>
void extremes() {
  Random random(9);
  const std::int64_t classes[] = {2, 3, 10};
  const double scales[] = {0.0, 1e-15, 1.0, 1e12}, sizes[] = {0.0, 1e4, 1e8},
               temperatures[] = {1e-6, 1.0, 1e6}, label_scales[] = {0.0, 1e4, -1e4};
  for (int a = 0; a < 4; ++a)
    for (int b = 0; b < 3; ++b)
      for (int c = 0; c < 3; ++c)
        for (int d = 0; d < 3; ++d) {
          auto psi = random.matrix<T>(9, 3);
          for (T& value : psi.data) value *= static_cast<T>(scales[a]);
          Problem problem(random, 9, classes[(a + b + c + d) % 3], 9, 20, true);
          for (double& value : problem.mean.data) value *= sizes[b];
          for (std::int64_t i = 0; i < 9; ++i) problem.variance[i] = dot(psi, i, i);
          problem.noise[0] = 1e-300;
          problem.noise[1] = std::numeric_limits<double>::infinity();
          for (int index = 0; index < criterion_count(); ++index) {
            ScoreCall call = problem.call(criterion_name(index));
            call.temperature = temperatures[c];
            call.label_scale = label_scales[d];
            score_features_cpu(psi.view(), call, {});
            for (const double value : problem.utilities)
              expect(std::isfinite(value), std::string(criterion_name(index)) +
                                               " is not finite: kernel " +
                                               std::to_string(scales[a] * scales[a]) + ", logits " +
                                               std::to_string(sizes[b]) + ", temperature " +
                                               std::to_string(temperatures[c]) + ", label_scale " +
                                               std::to_string(label_scales[d]));
          }
        }
}
NTKFAST_TEST(score_extremes_float) { extremes<float>(); }
NTKFAST_TEST(score_extremes_double) { extremes<double>(); }

NTKFAST_TEST(score_can_be_interrupted) {
  Random random(1);
  auto psi = random.matrix<double>(300, 60);
  Problem problem(random, 300, 26, 3000, 20000, true);
  bool interrupted = false;
  try {
    score_features_cpu(psi.view(), problem.call("expected_entropy"), [] { return true; });
  } catch (const Interrupted&) {
    interrupted = true;
  }
  expect(interrupted, "a long call ran to its end");
}

NTKFAST_TEST(score_refuses_what_does_not_fit) {
  Random random(2);
  auto psi = random.matrix<float>(9, 3);
  Problem problem(random, 9, 3, 4, 5, false);
  const auto refused = [&](const char* part, auto change) {
    ScoreCall call = problem.call("expected_entropy");
    change(call);
    expect_refused([&] { score_features_cpu(psi.view(), call, {}); }, part);
    for (const double value : problem.utilities) expect(value == -1, "utilities were written");
  };
  refused("expected one of mlmoc", [](ScoreCall& call) { call.criterion = "entropy"; });
  refused("log_loss_targets", [](ScoreCall& call) { call.criterion = "expected_log_loss"; });
  refused("temperature", [](ScoreCall& call) { call.temperature = 0; });
  refused("ridge", [](ScoreCall& call) { call.ridge = -1; });
  refused("label_scale", [](ScoreCall& call) { call.label_scale = std::nan(""); });
  refused("radius", [](ScoreCall& call) { call.radius = 0; });
  refused("covered", [](ScoreCall& call) {
    call.criterion = "ball_coverage";
    call.covered = {};
  });
  refused("residual_temperature", [](ScoreCall& call) { call.residual_temperature = 0; });
  refused("noise: expected shape (4,), got (3,)", [](ScoreCall& call) { call.noise.shape[0] = 3; });
  refused("mean: expected float64", [](ScoreCall& call) { call.mean.dtype = DType::kFloat32; });
  for (const std::int64_t bad : {-1, 9}) {
    problem.candidates[3] = bad;
    refused("candidates: index", [](ScoreCall&) {});
  }
  Matrix<double> S(9, 8);
  expect_refused([&] { score_dense_cpu(S.view(), {}, problem.call("epig"), {}); },
                 "S: expected shape (9, 9), got (9, 8)");
}

}  // namespace
}  // namespace ntkfast
