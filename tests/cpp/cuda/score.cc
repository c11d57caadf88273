// Scoring kernels against the CPU engine in float64, at small ragged sizes.
#include "cuda/score.cuh"

#include "cuda/score_blocks.cuh"
#include "emulation.h"
#include "score_problem.h"

namespace ntkfast {
namespace {

template <class T>
std::vector<double> run_features(const Problem& problem, const emulation::Options& options,
                                 int64_t wanted_blocks = kWantedBlocks) {
  const std::vector<T> psi(problem.psi.begin(), problem.psi.end());
  ScoreArgs<T> args = problem.args<T>();
  args.wanted_blocks = wanted_blocks;
  args.candidate_factor = {psi.data(), problem.d, 1, problem.candidates.data()};
  args.evaluation_factor = {psi.data(), problem.d, 1, problem.evaluation.data()};
  args.depth = problem.d;
  return run_score(
      problem, args, kPlainTile, sizeof(T),
      [&](auto& launcher, void* workspace) { launch_score(launcher, args, workspace); }, options);
}

NTKFAST_TEST(score_features_float32_every_criterion) {
  for (int criterion = 0; criterion < Criteria::size; ++criterion) {
    for (const int k : {criterion % 2 ? 2 : 10, criterion % 2 ? 26 : 3}) {
      const Problem problem(criterion, k, 70, 37, 61, 19);
      compare(problem, run_features<float>(problem, {}), 2e-5);
    }
  }
}
NTKFAST_TEST(score_features_float64_every_criterion) {
  for (int criterion = 0; criterion < Criteria::size; ++criterion) {
    const Problem problem(criterion, 5, 90, 65, 66, 17);
    compare(problem, run_features<double>(problem, {}), 1e-11);
  }
}
NTKFAST_TEST(score_features_many_classes) {
  for (int criterion = 0; criterion < Criteria::size; ++criterion) {
    const Problem problem(criterion, criterion % 4 == 0 ? 1000 : 100, 12, 5, 9, 8);
    compare(problem, run_features<float>(problem, {}), 2e-5);
  }
}
NTKFAST_TEST(score_features_large_steps) {  // every pair takes the guarded path
  for (int criterion = 0; criterion < Criteria::size; ++criterion) {
    const int classes[] = {2, 3, 10};
    const Problem of_float(criterion, classes[criterion % 3], 40, 11, 21, 9, 40.0);
    compare(of_float, run_features<float>(of_float, {}), 5e-5);
    const Problem of_double(criterion, classes[(criterion + 1) % 3], 40, 11, 21, 9, 40.0);
    compare(of_double, run_features<double>(of_double, {}), 1e-10);
  }
}
NTKFAST_TEST(score_features_any_order_of_threads) {
  const Problem problem(kEntropy, 10, 140, 33, 135, 18);
  const auto expected = run_features<float>(problem, {}, 1);
  compare(problem, expected, 2e-5);
  for (const emulation::Order order : emulation::kOrders)
    test::expect(run_features<float>(problem, {order, false}, 1) == expected,
                 "the result depends on the order of threads");
}
NTKFAST_TEST(score_features_empty) {
  for (const int depth : {0, 4}) {
    const Problem no_points(kEntropy, 3, 5, 4, 0, depth),
        no_candidates(kEntropy, 3, 5, 0, 4, depth);
    for (const double u : run_features<float>(no_points, {})) test::expect(u == 0, "not zero");
    test::expect(run_features<float>(no_candidates, {}).empty(), "not empty");
  }
  const Problem no_depth(kEntropy, 3, 20, 8, 11, 0);
  compare(no_depth, run_features<float>(no_depth, {}), 2e-5);
}

template <class T>
std::vector<double> run_dense(const Problem& problem, int rank, double tolerance,
                              int64_t wanted_blocks = kWantedBlocks,
                              const emulation::Options& options = {}) {
  const auto S = problem.covariance(0);
  std::vector<T> dense(S.begin(), S.end());
  const auto downdate = problem.downdate(rank);
  const std::vector<T> V(downdate.begin(), downdate.end());
  ScoreArgs<T> args = problem.args<T>();
  args.wanted_blocks = wanted_blocks;
  args.dense = dense.data();
  args.dense_stride = problem.N;
  args.subtract = true;
  args.depth = rank;
  if (problem.in_order) args.candidates = args.evaluation = nullptr;
  args.candidate_factor = {V.data(), 1, problem.N, args.candidates};
  args.evaluation_factor = {V.data(), 1, problem.N, args.evaluation};
  const auto result = run_score(
      problem, args, kPlainTile, sizeof(T),
      [&](auto& launcher, void* workspace) { launch_score(launcher, args, workspace); }, options);
  compare_values(result, problem.expected_dense(rank), tolerance, "dense");
  return result;
}
NTKFAST_TEST(score_dense_with_downdate) {
  for (int criterion = 0; criterion < Criteria::size; ++criterion) {
    const int rank = criterion % 2 ? 3 : 0;
    run_dense<float>(Problem(criterion, 10, 70, 35, 61, 12), rank, 5e-5);
    run_dense<double>(Problem(criterion, 3, 70, 35, 61, 12), 3 - rank, 1e-11);
    run_dense<float>(Problem(criterion, 10, 70, 35, 61, 12), 9, 5e-5);  // not a few terms
  }
}
NTKFAST_TEST(score_dense_all_points_in_order) {  // rows of whole tiles are read in pairs
  for (int criterion = 0; criterion < Criteria::size; ++criterion) {
    const int k = criterion % 2 ? 10 : 2;
    for (const int N : {192, 70, 131}) {  // whole tiles, pairs at even places, at any place
      for (const int64_t wanted_blocks : {int64_t{1}, kWantedBlocks}) {
        run_dense<float>(Problem(criterion, k, N, 5, N, 6, 1.0, true), N % 3, 5e-5, wanted_blocks);
        run_dense<double>(Problem(criterion, 3, N, 5, N, 6, 1.0, true), N % 2, 1e-11,
                          wanted_blocks);
      }
    }
    run_dense<float>(Problem(criterion, 10, 140, 5, 140, 9, 40.0, true), 1, 1e-4);  // large steps
  }
}
NTKFAST_TEST(score_dense_any_order_of_threads) {
  const Problem problem(kEntropy, 10, 200, 70, 200, 9, 1.0, true);
  const auto expected = run_dense<float>(problem, 1, 5e-5, 1);
  for (const emulation::Order order : emulation::kOrders)
    test::expect(run_dense<float>(problem, 1, 5e-5, 1, {order, false}) == expected,
                 "the result depends on the order of threads");
}

/// Utilities of the blocks K (x) I_k, which are worth what the scalar kernel K is.
std::vector<double> run_blocks(const Problem& problem, int64_t wanted_blocks,
                               int64_t scratch_bytes) {
  const int k = problem.k, N = problem.N;
  const auto K = problem.covariance(0);
  const auto at = [&](std::int64_t i, std::int64_t j) {
    return K[static_cast<std::size_t>(i * N + j)];
  };
  std::vector<double> S, variance, evaluation_variance, utilities(problem.candidates.size());
  for (const auto c : problem.candidates)
    for (int a = 0; a < k; ++a)
      for (int b = 0; b < k; ++b)
        for (const auto x : problem.evaluation) S.push_back(a == b ? at(c, x) : 0.0);
  for (auto [points, out] : {std::pair{&problem.candidates, &variance},
                             std::pair{&problem.evaluation, &evaluation_variance}})
    for (const auto x : *points)
      for (int e = 0; e < k * k; ++e) out->push_back(e % (k + 1) == 0 ? at(x, x) : 0.0);
  std::vector<int64_t> wrong(problem.candidates.size() + problem.evaluation.size(), -1);
  BlockArgs<double> args{};
  static_cast<ScoreInputs&>(args) = problem.args<double>();
  args.covariance = S.data();
  args.covariance_stride = k * problem.Nx;
  args.variance = variance.data();
  args.evaluation_variance = evaluation_variance.data();
  args.utilities = utilities.data();
  args.wrong = wrong.data();
  const BlockPlan plan =
      plan_blocks(problem.criterion, k, problem.Nc, problem.Nx, 8, wanted_blocks, scratch_bytes);
  std::vector<double> workspace(static_cast<std::size_t>(plan.total() / 8), NAN);
  emulation::Launcher launcher;
  launch_score_blocks(launcher, args, plan, workspace.data());
  for (const int64_t flag : wrong) test::expect(flag == 0, "wrong");
  return utilities;
}
NTKFAST_TEST(score_blocks_on_as_few_threads_as_fit) {
  for (const char* name : {ExpectedEntropy::name, Epig::name}) {
    const Problem problem(criterion_index(name), 3, 170, 37, 131, 8);
    const auto all = run_blocks(problem, kWantedBlocks, kBlockScratch);
    compare(problem, all, 1e-10);
    compare_values(run_blocks(problem, 70, 1), all, 1e-13, name);      // a block for all
    compare_values(run_blocks(problem, 70, 30000), all, 1e-13, name);  // some
  }
}

}  // namespace
}  // namespace ntkfast
