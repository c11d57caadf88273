// A random scoring problem, its utilities by the CPU engine in float64, and the comparison.
#pragma once

#include <cmath>
#include <limits>
#include <numeric>
#include <random>
#include <vector>

#include "cpu/score.h"
#include "cpu/score_dense.h"
#include "cpu/score_features.h"
#include "cuda/score.cuh"
#include "emulation.h"
#include "test.h"

namespace ntkfast {
namespace {

/// A criterion for tests that one will do for.
const int kEntropy = criterion_index(ExpectedEntropy::name);

template <class T>
DType dtype_of() {
  return sizeof(T) == 4 ? DType::kFloat32 : DType::kFloat64;
}
template <class T>
TensorView view(const std::vector<T>& data, std::initializer_list<std::int64_t> shape) {
  TensorView result;
  result.data = const_cast<T*>(data.data());
  result.dtype = std::is_integral<T>::value ? DType::kInt64 : dtype_of<T>();
  result.ndim = static_cast<int>(shape.size());
  std::copy(shape.begin(), shape.end(), result.shape);
  std::int64_t stride = 1;
  for (int i = result.ndim - 1; i >= 0; --i) {
    result.stride[i] = stride;
    stride *= result.shape[i];
  }
  return result;
}

struct Problem {
  int criterion, k, N, Nc, Nx, d;
  std::vector<double> psi, mean, outputs, variance, noise, probs, weights, targets, covered;
  std::vector<std::int64_t> candidates, evaluation;
  bool cross_entropy, in_order;
  double label_scale, temperature, ridge = 0.3, residual_temperature = 1.7, radius = 1.1;

  Problem(int criterion, int k, int N, int Nc, int Nx, int d, double size = 1.0,
          bool in_order = false)
      : criterion(criterion),
        k(k),
        N(N),
        Nc(Nc),
        Nx(Nx),
        d(d),
        cross_entropy(k % 2 == 0),
        in_order(in_order),
        label_scale(cross_entropy ? 2 * size : 1.0),
        temperature(cross_entropy ? 1.0 : 0.3 / size) {
    std::mt19937 random(static_cast<unsigned>(criterion * 1000 + k));
    std::normal_distribution<double> normal;
    std::uniform_real_distribution<double> uniform(0.1, 1.0);
    const auto fill = [](std::vector<double>& to, int count, auto&& draw) {
      to.resize(static_cast<std::size_t>(count));
      for (double& value : to) value = draw();
    };
    // Exact in bfloat16, so that every precision is given the same numbers.
    fill(psi, N * d, [&] { return std::round(normal(random) * 32) / 128; });
    fill(mean, N * k, [&] { return normal(random); });
    outputs = mean;
    for (double& f : outputs) f += 0.5 * normal(random);
    variance.assign(static_cast<std::size_t>(N), 0.0);
    for (int i = 0; i < N * d; ++i)
      variance[static_cast<std::size_t>(i / d)] +=
          psi[static_cast<std::size_t>(i)] * psi[static_cast<std::size_t>(i)];
    fill(noise, Nc, [&] { return uniform(random); });
    if (Nc > 2) noise[2] = std::numeric_limits<double>::infinity();
    fill(weights, Nx, [&] { return uniform(random); });
    fill(covered, Nx, [&] { return uniform(random) - 0.3; });
    const auto distribution = [&](std::vector<double>& to, int rows) {
      fill(to, rows * k, [&] { return uniform(random); });
      for (int i = 0; i < rows; ++i) {
        const auto row = to.begin() + i * k;
        const double total = std::accumulate(row, row + k, 0.0);
        for (int j = 0; j < k; ++j) row[j] /= total;
      }
    };
    distribution(probs, Nc);
    distribution(targets, Nx);
    const auto choose = [&](std::vector<std::int64_t>& to, int count) {
      to.resize(static_cast<std::size_t>(N));
      std::iota(to.begin(), to.end(), std::int64_t{0});
      if (!in_order) std::shuffle(to.begin(), to.end(), random);
      to.resize(static_cast<std::size_t>(count));
      to.shrink_to_fit();  // so that the sanitizer sees a step beyond the end
    };
    choose(candidates, Nc);
    choose(evaluation, Nx);
  }

  /// Everything but the covariance and the workspace.
  template <class T>
  ScoreArgs<T> args() const {
    ScoreArgs<T> result{};
    static_cast<Settings&>(result) = {k,     cross_entropy,        label_scale, temperature,
                                      ridge, residual_temperature, radius};
    result.criterion = criterion;
    result.candidates = candidates.data();
    result.evaluation = evaluation.data();
    result.num_candidates = Nc;
    result.num_evaluation = Nx;
    result.mean = mean.data();
    result.outputs = outputs.data();
    result.variance = variance.data();
    result.noise = noise.data();
    result.label_probs = probs.data();
    result.weights = weights.data();
    result.targets = targets.data();
    result.covered = covered.data();
    return result;
  }

  std::vector<double> covariance(int rank) const {
    std::vector<double> S(static_cast<std::size_t>(N * N));
    const auto V = downdate(rank);
    for (int i = 0; i < N; ++i) {
      for (int j = 0; j < N; ++j) {
        double sum = 0;
        for (int p = 0; p < d; ++p)
          sum +=
              psi[static_cast<std::size_t>(i * d + p)] * psi[static_cast<std::size_t>(j * d + p)];
        for (int r = 0; r < rank; ++r)
          sum -= V[static_cast<std::size_t>(r * N + i)] * V[static_cast<std::size_t>(r * N + j)];
        S[static_cast<std::size_t>(i * N + j)] = sum;
      }
    }
    return S;
  }
  std::vector<double> downdate(int rank) const {
    std::vector<double> V(static_cast<std::size_t>(rank * N));
    std::mt19937 random(7);
    std::normal_distribution<double> normal;
    for (double& value : V) value = 0.05 * normal(random);
    return V;
  }

  ScoreCall call(std::vector<double>& utilities) const {
    ScoreCall result;
    result.criterion = criterion_name(criterion);
    result.candidates = view(candidates, {Nc});
    result.evaluation = view(evaluation, {Nx});
    result.mean = view(mean, {N, k});
    result.outputs = view(outputs, {N, k});
    result.variance = view(variance, {N});
    result.noise = view(noise, {Nc});
    result.label_probs = view(probs, {Nc, k});
    result.weights = view(weights, {Nx});
    result.log_loss_targets = view(targets, {Nx, k});
    result.covered = view(covered, {Nx});
    result.radius = radius;
    result.label_scale = label_scale;
    result.loss = cross_entropy ? "cross_entropy" : "squared";
    result.temperature = temperature;
    result.ridge = ridge;
    result.residual_temperature = residual_temperature;
    utilities.resize(static_cast<std::size_t>(Nc));
    result.utilities = view(utilities, {Nc});
    return result;
  }
  std::vector<double> expected() const {
    std::vector<double> utilities;
    const ScoreCall arguments = call(utilities);
    score_features_cpu(view(psi, {N, d}), arguments, {});
    return utilities;
  }
  std::vector<double> expected_dense(int rank) const {
    std::vector<double> utilities;
    const ScoreCall arguments = call(utilities);
    score_dense_cpu(view(covariance(rank), {N, N}), {}, arguments, {});
    return utilities;
  }
};

/// Runs the launches of one call in the emulation, on workspace and outputs full of NaN.
template <class T, class Launch>
std::vector<double> run_score(const Problem& problem, ScoreArgs<T>& args, TileShape tile,
                              std::size_t element_bytes, Launch&& launch,
                              const emulation::Options& options, std::int64_t more_bytes = 0) {
  const auto bytes = static_cast<std::size_t>(
      more_bytes + score_sizes(problem.criterion, problem.k, problem.Nc, problem.Nx,
                               static_cast<int>(element_bytes), tile, args.wanted_blocks)
                       .total());
  // A GPU allocation is aligned like this one; its end is the sanitizer's.
  const std::unique_ptr<unsigned char, decltype(&std::free)> workspace(
      static_cast<unsigned char*>(std::aligned_alloc(256, std::max<std::size_t>(bytes, 256))),
      &std::free);
  std::memset(workspace.get(), 0xff, bytes);
  std::vector<double> utilities(static_cast<std::size_t>(problem.Nc),
                                std::numeric_limits<double>::quiet_NaN());
  args.utilities = utilities.data();
  emulation::Launcher launcher(options);
  launch(launcher, workspace.get());
  return utilities;
}

inline void compare_values(const std::vector<double>& actual, const std::vector<double>& expected,
                           double tolerance, const std::string& what) {
  test::expect(actual.size() == expected.size(), what + ": wrong size");
  double largest = 0;
  for (const double value : expected) largest = std::max(largest, std::abs(value));
  for (std::size_t i = 0; i < actual.size(); ++i)
    test::expect(std::abs(actual[i] - expected[i]) <= tolerance * largest,
                 what + " [" + std::to_string(i) + "]: " + std::to_string(actual[i]) +
                     " instead of " + std::to_string(expected[i]));
}
inline void compare(const Problem& problem, const std::vector<double>& actual, double tolerance) {
  compare_values(actual, problem.expected(), tolerance,
                 std::string(criterion_name(problem.criterion)) + " with " +
                     std::to_string(problem.k) + " classes");
}

}  // namespace
}  // namespace ntkfast
