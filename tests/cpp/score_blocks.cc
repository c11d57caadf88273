// The driver for a matrix-valued kernel against the definition, in allocations that end where they
// do.
#include "cpu/score_blocks.h"

#include <algorithm>
#include <limits>

#include "cpu/score.h"
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

constexpr double kRidge = 0.3, kTemperature = 0.4, kResidualTemperature = 2;

TensorView blocks_view(std::vector<double>& data, std::int64_t count, std::int64_t k) {
  TensorView result = view(data);
  result.ndim = 3;
  result.shape[0] = count;
  result.shape[1] = result.shape[2] = k;
  result.stride[0] = k * k;
  result.stride[1] = k;
  result.stride[2] = 1;
  return result;
}

/// S = X X^T of N k random rows, and the arguments of a call on some of its points.
struct Problem {
  std::int64_t N, k;
  Matrix<double> X;
  std::vector<std::int64_t> candidates, evaluation;
  Matrix<double> mean, outputs, label_probs, targets;
  std::vector<double> noise, weights, utilities, variance, evaluation_variance;
  bool cross_entropy;

  Problem(Random& random, std::int64_t points, std::int64_t classes, std::int64_t num_candidates,
          std::int64_t num_evaluation)
      : N(points),
        k(classes),
        X(random.matrix<double>(points * classes, 2 * classes)),
        mean(random.matrix<double>(points, classes)),
        outputs(random.matrix<double>(points, classes)),
        label_probs(num_candidates, classes),
        targets(num_evaluation, classes),
        cross_entropy(classes % 2 == 0) {
    for (double& value : X.data) value /= std::sqrt(2.0 * static_cast<double>(k));
    for (std::int64_t i = 0; i < num_candidates; ++i) {
      candidates.push_back(random.below(N));
      noise.push_back(i % 5 == 4 ? std::numeric_limits<double>::infinity()
                                 : random.uniform(0.2, 2));
    }
    for (std::int64_t i = 0; i < num_evaluation; ++i) {
      evaluation.push_back(random.below(N));
      weights.push_back(random.uniform());
    }
    for (Matrix<double>* rows : {&label_probs, &targets})
      for (std::int64_t i = 0; i < rows->rows; ++i) {
        for (std::int64_t j = 0; j < k; ++j) (*rows)(i, j) = 1.0 / static_cast<double>(k);
        if (k > 2) {  // one label is impossible
          (*rows)(i, 0) = 0;
          (*rows)(i, 1) = 2.0 / static_cast<double>(k);
        }
      }
    utilities.assign(candidates.size(), -1);
    for (auto [points_of, out] :
         {std::pair{&candidates, &variance}, std::pair{&evaluation, &evaluation_variance}})
      for (const std::int64_t point : *points_of)
        for (std::int64_t a = 0; a < k; ++a)
          for (std::int64_t b = 0; b < k; ++b) out->push_back(S(point * k + a, point * k + b));
  }

  double S(std::int64_t i, std::int64_t j) const {
    double sum = 0;
    for (std::int64_t p = 0; p < X.cols; ++p) sum += X(i, p) * X(j, p);
    return sum;
  }

  ScoreCall call(const std::string& criterion) {
    ScoreCall result;
    result.criterion = criterion;
    result.candidates = view(candidates);
    result.evaluation = view(evaluation);
    result.mean = mean.view();
    result.outputs = outputs.view();
    result.variance = blocks_view(variance, static_cast<std::int64_t>(candidates.size()), k);
    result.noise = view(noise);
    result.label_probs = label_probs.view();
    result.weights = view(weights);
    if (criterion == "expected_log_loss") result.log_loss_targets = targets.view();
    result.label_scale = label_scale();
    result.loss = cross_entropy ? "cross_entropy" : "squared";
    result.temperature = kTemperature;
    result.ridge = kRidge;
    result.residual_temperature = kResidualTemperature;
    result.utilities = view(utilities);
    return result;
  }
  double label_scale() const { return cross_entropy ? 5 : 1; }

  /// Solves (S(point, point) + lam I) X = B in place of B, (k, columns), by elimination.
  void solve(std::int64_t point, double lam, Matrix<double>& B, double* log_det = nullptr) const {
    Matrix<double> A(k, k);
    for (std::int64_t a = 0; a < k; ++a)
      for (std::int64_t b = 0; b < k; ++b)
        A(a, b) = S(point * k + a, point * k + b) + (a == b ? lam : 0.0);
    eliminate(A, B, log_det);
  }
  static void eliminate(Matrix<double>& A, Matrix<double>& B, double* log_det) {
    const std::int64_t n = A.rows;
    if (log_det) *log_det = 0;
    for (std::int64_t p = 0; p < n; ++p) {  // positive definite: no pivoting
      if (log_det) *log_det += std::log(A(p, p));
      for (std::int64_t i = 0; i < n; ++i) {
        if (i == p) continue;
        const double factor = A(i, p) / A(p, p);
        for (std::int64_t j = p; j < n; ++j) A(i, j) -= factor * A(p, j);
        for (std::int64_t j = 0; j < B.cols; ++j) B(i, j) -= factor * B(p, j);
      }
    }
    for (std::int64_t i = 0; i < n; ++i)
      for (std::int64_t j = 0; j < B.cols; ++j) B(i, j) /= A(i, i);
  }

  double summand(const std::string& criterion, std::int64_t i, std::int64_t x, double near,
                 double* slack) const {
    const std::int64_t c = candidates[i], point = evaluation[x];
    const bool silent = std::isinf(noise[i]);
    Matrix<double> cross(k, k), gain(k, k);  // S(c, x); A^-1 S(c, x)
    for (std::int64_t a = 0; a < k; ++a)
      for (std::int64_t b = 0; b < k; ++b) cross(a, b) = gain(a, b) = S(c * k + a, point * k + b);
    if (silent) {
      std::fill(gain.data.begin(), gain.data.end(), 0.0);
    } else {
      solve(c, noise[i], gain);
    }
    if (criterion == "variance_reduction") {
      double sum = 0;
      for (std::size_t e = 0; e < cross.data.size(); ++e) sum += cross.data[e] * gain.data[e];
      return sum / static_cast<double>(k);
    }
    if (criterion == "epig") {
      double before = 0, after = 0;
      Matrix<double> nothing(k, 0), A(k, k);
      solve(point, kRidge, nothing, &before);
      for (std::int64_t a = 0; a < k; ++a)
        for (std::int64_t b = 0; b < k; ++b) {
          A(a, b) = S(point * k + a, point * k + b) + (a == b ? kRidge : 0.0);
          for (std::int64_t m = 0; m < k; ++m) A(a, b) -= cross(m, a) * gain(m, b);
        }
      eliminate(A, nothing, &after);
      return 0.5 * (before - after) / static_cast<double>(k);
    }
    const auto after = [&](int y) {
      auto f_plus = mean.row(point);
      const auto r =
          oracle::residual(y, mean.row(c), cross_entropy, label_scale(), kResidualTemperature);
      for (std::int64_t j = 0; j < k; ++j)
        for (std::int64_t a = 0; a < k; ++a) f_plus[j] += gain(a, j) * r[a];
      return f_plus;
    };
    return static_cast<double>(oracle::look_ahead(criterion, after, outputs.row(point),
                                                  targets.row(x), outputs.row(c),
                                                  label_probs.row(i), kTemperature, near, slack));
  }
};

template <class T>
void blocks(std::int64_t candidates, std::int64_t evaluation, std::int64_t k) {
  const double tolerance = sizeof(T) == 4 ? 3e-5 : 1e-11;
  Random random(static_cast<std::uint32_t>(candidates * 7 + evaluation * 3 + k));
  Problem problem(random, 7, k, candidates, evaluation);
  Matrix<T> S(7 * k, 7 * k, evaluation % 3);
  for (std::int64_t i = 0; i < S.rows; ++i)
    for (std::int64_t j = 0; j < S.cols; ++j) S(i, j) = static_cast<T>(problem.S(i, j));
  Matrix<T> panel(candidates * k, evaluation * k);
  for (std::int64_t i = 0; i < panel.rows; ++i)
    for (std::int64_t j = 0; j < panel.cols; ++j)
      panel(i, j) = S(problem.candidates[i / k] * k + i % k, problem.evaluation[j / k] * k + j % k);
  for (int index = 0; index < criterion_count(); ++index) {
    const std::string criterion = criterion_name(index);
    const unsigned traits = criterion_traits(index);
    if (((traits & kLookAhead) && k < 2) || (traits & kReadsCovered)) continue;
    // Criteria share all code that depends on sizes: each meets a third of them.
    if ((index + candidates + evaluation + k) % 3 != 0) continue;
    const TensorView diagonal = blocks_view(problem.evaluation_variance, evaluation, k);
    const ScoreCall call = problem.call(criterion);
    score_blocks_cpu(S.view(), view(problem.candidates), view(problem.evaluation), diagonal, call,
                     {});
    const std::vector<double> found = problem.utilities;
    score_blocks_cpu(panel.view(), {}, {}, diagonal, call, {});
    for (std::int64_t i = 0; i < candidates; ++i) {
      expect(found[i] == problem.utilities[i], criterion + ": a panel is part of the matrix");
      if (i > 2 && i + 2 < candidates) continue;
      double sum = 0, slack = 0, size = 0;
      for (std::int64_t x = 0; x < evaluation; ++x) {
        double near = 0;
        const double value = problem.summand(criterion, i, x, tolerance * 100, &near);
        sum += problem.weights[x] * value;
        size += problem.weights[x] * (1 + std::fabs(value));
        slack += problem.weights[x] * near;
      }
      expect_near(found[i], sum, tolerance * size + slack,
                  criterion + " of candidate " + std::to_string(i) + ", k = " + std::to_string(k) +
                      ", " + std::to_string(evaluation) + " points");
    }
  }
}

template <class T>
void every_size() {
  for (const std::int64_t candidates : {0, 1, 17})
    for (const std::int64_t evaluation : {0, 1, 15, 17, 33}) blocks<T>(candidates, evaluation, 3);
  for (const std::int64_t k : {1, 2, 4, 5, 7, 10, 13, 14, 15, 17, 29}) blocks<T>(2, 9, k);
  blocks<T>(2, 2100, 2);  // more than 64 tiles of points
}
NTKFAST_TEST(score_blocks_float) { every_size<float>(); }
NTKFAST_TEST(score_blocks_double) { every_size<double>(); }

NTKFAST_TEST(score_blocks_refused) {
  Random random(3);
  Problem problem(random, 4, 3, 2, 5);
  Matrix<double> S(12, 12);
  const auto run = [&](const TensorView& covariance, const TensorView& rows,
                       const TensorView& diagonal) {
    score_blocks_cpu(covariance, rows, view(problem.evaluation), diagonal, problem.call("epig"),
                     {});
  };
  const TensorView diagonal = blocks_view(problem.evaluation_variance, 5, 3);
  Matrix<double> ragged(12, 11);
  expect_refused([&] { run(ragged.view(), {}, diagonal); }, "blocks of 3 x 3");
  std::vector<std::int64_t> rows{0, 4};
  expect_refused([&] { run(S.view(), view(rows), diagonal); }, "rows: index 4");
  expect_refused([&] { run(S.view(), {}, {}); }, "evaluation_variance");
  problem.variance[0] = -100;
  expect_refused([&] { run(S.view(), {}, diagonal); }, "not positive definite");
}

}  // namespace
}  // namespace ntkfast
