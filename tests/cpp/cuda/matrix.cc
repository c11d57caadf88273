// Matrix and moment kernels against plain loops in double.
#include "cuda/matrix.cuh"

#include "cuda/moments.cuh"
#include "cuda/weighted_gram.cuh"
#include "emulation.h"
#include "matrices.h"
#include "test.h"

namespace ntkfast {
namespace {

std::vector<double> positive_definite(int64_t n, unsigned seed) {
  const auto X = random_matrix(n, n, seed);
  std::vector<double> A(static_cast<std::size_t>(n * n));
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j < n; ++j) {
      double sum = i == j ? 1.0 : 0.0;
      for (int64_t p = 0; p < n; ++p)
        sum += at(X, n, i, p) * at(X, n, j, p) / static_cast<double>(n);
      A[static_cast<std::size_t>(i * n + j)] = sum;
    }
  }
  return A;
}
std::vector<double> times_transpose(const std::vector<double>& L, int64_t n) {
  std::vector<double> A(static_cast<std::size_t>(n * n));
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = 0; j < n; ++j)
      for (int64_t p = 0; p < n; ++p)
        A[static_cast<std::size_t>(i * n + j)] += at(L, n, i, p) * at(L, n, j, p);
  return A;
}

template <class T>
void check_condition_features(double tolerance) {
  constexpr int64_t N = 70, d = 67, b = 5, stride = 69;
  auto psi = random_matrix<T>(N, stride, 1);
  const auto before = psi;
  const auto U = random_matrix(b, d, 2), C = random_matrix(b, d, 3);
  auto expected = psi;
  for (int64_t i = 0; i < N; ++i) {
    for (int64_t r = 0; r < b; ++r) {
      double projection = 0;
      for (int64_t j = 0; j < d; ++j) projection += at(before, stride, i, j) * at(U, d, r, j);
      for (int64_t j = 0; j < d; ++j)
        expected[static_cast<std::size_t>(i * stride + j)] -=
            static_cast<T>(projection * at(C, d, r, j));
    }
  }
  std::vector<double> projection(N * b, kNaN);
  emulation::Launcher launcher;
  launch_condition_features<T>(launcher, psi.data(), stride, N, d, U.data(), d, C.data(), d, b,
                               projection.data());
  expect_close(psi, expected, tolerance, "condition_features");
}
NTKFAST_TEST(condition_features) {
  check_condition_features<float>(2e-6);
  check_condition_features<double>(1e-13);
}

template <class T>
void check_condition_dense(double tolerance) {
  constexpr int64_t N = 70, b = 3;
  const auto A = positive_definite(N, 4);
  std::vector<T> S(A.begin(), A.end());
  const auto V = random_matrix(b, N, 5);
  auto expected = A;
  for (int64_t i = 0; i < N; ++i)
    for (int64_t j = 0; j < N; ++j)
      for (int64_t r = 0; r < b; ++r)
        expected[static_cast<std::size_t>(i * N + j)] -= at(V, N, r, i) * at(V, N, r, j);
  emulation::Launcher launcher;
  launch_condition_dense<T>(launcher, S.data(), N, N, V.data(), N, b);
  expect_close(S, expected, tolerance, "condition_dense");
  for (int64_t i = 0; i < N; ++i)
    for (int64_t j = 0; j < i; ++j)
      test::expect(at(S, N, i, j) == at(S, N, j, i), "condition_dense: not symmetric");
}
NTKFAST_TEST(condition_dense) {
  check_condition_dense<float>(1e-6);
  check_condition_dense<double>(1e-14);
}

NTKFAST_TEST(whiten) {
  constexpr int64_t N = 66, d = 65;
  const auto X = random_matrix<float>(N, d, 6);
  const auto W = random_matrix(d, d, 7);
  std::vector<float> psi(N * d, std::numeric_limits<float>::quiet_NaN());
  std::vector<double> expected(N * d);
  for (int64_t i = 0; i < N; ++i)
    for (int64_t j = 0; j < d; ++j)
      for (int64_t p = 0; p < d; ++p)
        expected[static_cast<std::size_t>(i * d + j)] += at(X, d, i, p) * at(W, d, j, p);
  emulation::Launcher launcher;
  launch_gemm<double>(launcher,
                      GemmArgs<float, double, float>{
                          {X.data(), d, 1}, {W.data(), d, 1}, N, d, d, psi.data(), d, 1, 1.0, 0.0});
  expect_close(psi, expected, 1e-7, "whiten");
}

template <class T>
void check_weighted_gram(int64_t N, int64_t d, int64_t wanted_blocks, bool shared_out) {
  const int64_t stride = d + 3;
  const auto X = random_matrix<T>(N, stride, 24);
  const auto weights = random_matrix(1, N, 25);
  std::vector<double> G(static_cast<std::size_t>(d * d), kNaN), expected(G.size());
  for (int64_t x = 0; x < N; ++x)
    for (int64_t i = 0; i < d; ++i)
      for (int64_t j = 0; j < d; ++j)
        expected[static_cast<std::size_t>(i * d + j)] +=
            weights[static_cast<std::size_t>(x)] * at(X, stride, x, i) * at(X, stride, x, j);
  std::vector<double> workspace(
      static_cast<std::size_t>(weighted_gram_workspace(N, d, wanted_blocks) / 8), kNaN);
  test::expect(workspace.empty() != shared_out, "points are shared out where one share would do");
  WeightedGramArgs<T> args{};
  args.X = X.data();
  args.row_stride = stride;
  args.points = N;
  args.cols = d;
  args.weights = weights.data();
  args.G = G.data();
  args.G_stride = d;
  emulation::Launcher launcher;
  launch_weighted_gram(launcher, args, workspace.data(), wanted_blocks);
  expect_close(G, expected, 1e-12, "weighted_gram");
  for (int64_t i = 0; i < d; ++i)
    for (int64_t j = 0; j < i; ++j)
      test::expect(at(G, d, i, j) == at(G, d, j, i), "weighted_gram: not symmetric");
}
NTKFAST_TEST(weighted_gram) {
  check_weighted_gram<float>(67, 70, kGramBlocks, false);
  check_weighted_gram<double>(40, 135, kGramBlocks, false);  // several tiles
  check_weighted_gram<float>(2 * kGramShare + 5, 9, kGramBlocks, true);
  check_weighted_gram<float>(kGramShare + 30, 130, 8, true);  // both
  check_weighted_gram<float>(0, 5, kGramBlocks, false);
}

NTKFAST_TEST(quadratic_form_and_squared_norms) {
  constexpr int64_t N = 131, d = 70;
  const auto X = random_matrix<float>(N, d, 8);
  const auto G = random_matrix(d, d, 9);  // not symmetric
  std::vector<double> q(N, kNaN), norms(N, kNaN), expected_q(N), expected_norms(N);
  for (int64_t x = 0; x < N; ++x) {
    for (int64_t i = 0; i < d; ++i) {
      expected_norms[static_cast<std::size_t>(x)] += at(X, d, x, i) * at(X, d, x, i);
      for (int64_t j = 0; j < d; ++j)
        expected_q[static_cast<std::size_t>(x)] += at(X, d, x, i) * at(G, d, i, j) * at(X, d, x, j);
    }
  }
  emulation::Launcher launcher;
  launch_quadratic_form(launcher, RowArgs<float>{X.data(), d, N, d, G.data(), d, q.data()});
  expect_close(q, expected_q, 1e-13, "quadratic_form");
  launcher.run<SquaredNorms<float>>({div_up(N, 8), 1}, 0,
                                    RowArgs<float>{X.data(), d, N, d, nullptr, 0, norms.data()});
  expect_close(norms, expected_norms, 1e-14, "squared_norms");
}

NTKFAST_TEST(cholesky_and_triangular_solve) {
  for (const int64_t n : {1, 63, 64, 65, 150}) {
    const auto A = positive_definite(n, 10);
    auto L = A;
    int64_t failed = 0;
    emulation::Launcher launcher;
    launch_cholesky(launcher, L.data(), n, n, &failed);
    test::expect(failed == 0, "cholesky failed");
    expect_close(times_transpose(L, n), A, 1e-13, "cholesky");
    for (int64_t i = 0; i < n; ++i)
      for (int64_t j = i + 1; j < n; ++j) test::expect(at(L, n, i, j) == 0, "cholesky: upper part");
    const int64_t m = 7;
    const auto B = random_matrix(n, m, 11);
    for (const bool transpose : {false, true}) {
      auto X = B;
      launch_triangular_solve(launcher, L.data(), n, n, X.data(), m, 1, m, transpose);
      std::vector<double> back(B.size());
      for (int64_t i = 0; i < n; ++i)
        for (int64_t j = 0; j < m; ++j)
          for (int64_t p = 0; p < n; ++p)
            back[static_cast<std::size_t>(i * m + j)] +=
                (transpose ? at(L, n, p, i) : at(L, n, i, p)) * at(X, m, p, j);
      expect_close(back, B, 1e-12, "triangular_solve");
    }
  }
}
NTKFAST_TEST(cholesky_reports_the_row) {
  constexpr int64_t n = 100;
  auto A = positive_definite(n, 12);
  A[80 * n + 80] = -1;
  int64_t failed = 0;
  emulation::Launcher launcher;
  launch_cholesky(launcher, A.data(), n, n, &failed);
  test::expect(failed == 81, "wrong row: " + std::to_string(failed));
}
template <class S>
void check_downdate_moments(int64_t d) {
  constexpr int64_t N = 75;
  const auto psi = random_matrix<S>(N, d, 14);
  const auto g = random_matrix(1, d, 15), h = random_matrix(1, d, 16);
  const std::vector<double> scalars{0.7, 2.5};
  auto q = random_matrix(1, N, 17), s = random_matrix(1, N, 18);
  auto expected_q = q, expected_s = s;
  for (int64_t i = 0; i < N; ++i) {
    double alpha = 0, beta = 0;
    for (int64_t j = 0; j < d; ++j) {
      alpha += at(psi, d, i, j) * g[static_cast<std::size_t>(j)];
      beta += at(psi, d, i, j) * h[static_cast<std::size_t>(j)];
    }
    expected_q[static_cast<std::size_t>(i)] -= 2 * alpha * beta / 2.5 - alpha * alpha * 0.7 / 6.25;
    expected_s[static_cast<std::size_t>(i)] -= alpha * alpha / 2.5;
  }
  emulation::Launcher launcher;
  launch_downdate_moments(
      launcher, MomentArgs<S>{psi.data(), d, d, nullptr, N, g.data(), h.data(), scalars.data(),
                              q.data(), s.data(), nullptr, nullptr, nullptr});
  expect_close(q, expected_q, 1e-13, "downdate_moments q");
  expect_close(s, expected_s, 1e-13, "downdate_moments s");
}
NTKFAST_TEST(downdate_moments) {
  check_downdate_moments<float>(33);
  check_downdate_moments<double>(64);
  check_downdate_moments<float>(kMomentColumns + 3);  // in two parts
}

/// The same bits from features in bfloat16 as from the same numbers in float.
NTKFAST_TEST(features_in_bfloat16) {
  constexpr int64_t N = 67, d = 35, k = 3;
  std::vector<float> X = random_matrix<float>(N, d, 20);
  std::vector<BFloat16> rounded;
  for (float& value : X) {
    rounded.push_back(to_bfloat16(static_cast<double>(value)));
    value = to_float(rounded.back());
  }
  const auto G = random_matrix(d, d, 21), B = random_matrix(d, k, 22), g = random_matrix(1, d, 23);
  const std::vector<double> scalars{0.7, 2.5};
  const auto results = [&](const auto& features) {
    using S = typename std::decay_t<decltype(features)>::value_type;
    std::vector<double> product(N * k, kNaN), q(N, kNaN), norms(N, kNaN);
    emulation::Launcher launcher;
    launch_gemm<double>(
        launcher,
        GemmArgs<S, double, double>{
            {features.data(), d, 1}, {B.data(), 1, k}, N, k, d, product.data(), k, 1, 1.0, 0.0});
    RowArgs<S> rows{features.data(), d, N, d, G.data(), d, q.data()};
    launch_quadratic_form(launcher, rows);
    rows.out = norms.data();
    launcher.run<SquaredNorms<S>>({div_up(N, 8), 1}, 0, rows);
    launch_downdate_moments(
        launcher, MomentArgs<S>{features.data(), d, d, nullptr, N, g.data(), g.data(),
                                scalars.data(), q.data(), norms.data(), nullptr, nullptr, nullptr});
    product.insert(product.end(), q.begin(), q.end());
    product.insert(product.end(), norms.begin(), norms.end());
    return product;
  };
  const auto expected = results(X);
  for (const double value : expected) test::expect(std::isfinite(value), "not finite");
  test::expect(results(rounded) == expected, "bfloat16 features give something else");
  double sum = 0;
  for (int64_t p = 0; p < d; ++p) sum += at(X, d, 4, p) * at(B, k, p, 2);
  test::expect(std::abs(expected[4 * k + 2] - sum) < 1e-13, "wrong product");
}

/// The selection by its definition: refit C after each pick, score all candidates anew.
NTKFAST_TEST(select_variance_reduction) {
  constexpr int64_t N = 90, d = 12, picks = 8;
  const auto psi = random_matrix<float>(N, d, 19);
  std::vector<int64_t> candidates;
  for (int64_t i = 3; i < N; i += 2) candidates.push_back(i);
  const auto rows = static_cast<int64_t>(candidates.size());
  std::vector<double> noise(candidates.size(), 0.5), G(d * d), C(d * d);
  noise[4] = std::numeric_limits<double>::infinity();
  for (int64_t i = 0; i < d; ++i) {
    C[static_cast<std::size_t>(i * d + i)] = 1;
    for (int64_t j = 0; j < d; ++j)
      for (int64_t x = 0; x < N; ++x)
        G[static_cast<std::size_t>(i * d + j)] += at(psi, d, x, i) * at(psi, d, x, j);
  }
  const auto form = [&](const std::vector<double>& M, int64_t row) {
    double sum = 0;
    for (int64_t i = 0; i < d; ++i)
      for (int64_t j = 0; j < d; ++j)
        sum += at(psi, d, row, i) * at(M, d, i, j) * at(psi, d, row, j);
    return sum;
  };
  const auto product = [&](const std::vector<double>& A, const std::vector<double>& B) {
    std::vector<double> out(d * d);
    for (int64_t i = 0; i < d; ++i)
      for (int64_t j = 0; j < d; ++j)
        for (int64_t p = 0; p < d; ++p)
          out[static_cast<std::size_t>(i * d + j)] += at(A, d, i, p) * at(B, d, p, j);
    return out;
  };
  std::vector<double> q(candidates.size()), s(candidates.size());
  std::vector<double> identity = C;
  for (std::size_t i = 0; i < candidates.size(); ++i) {
    q[i] = form(G, candidates[i]);
    s[i] = form(identity, candidates[i]);
  }
  std::vector<int64_t> expected_picks;
  std::vector<double> expected_utilities;
  for (int64_t t = 0; t < picks; ++t) {
    const auto CGC = product(product(C, G), C);
    int64_t best = -1;
    double best_utility = -1;
    for (int64_t i = 0; i < rows; ++i) {
      if (std::find(expected_picks.begin(), expected_picks.end(), i) != expected_picks.end())
        continue;
      const auto place = static_cast<std::size_t>(i);
      const double utility =
          form(CGC, candidates[place]) / (form(C, candidates[place]) + noise[place]);
      if (utility > best_utility) {
        best_utility = utility;
        best = i;
      }
    }
    expected_picks.push_back(best);
    expected_utilities.push_back(best_utility);
    const int64_t row = candidates[static_cast<std::size_t>(best)];
    const double D = form(C, row) + noise[static_cast<std::size_t>(best)];
    std::vector<double> g(d);
    for (int64_t i = 0; i < d; ++i)
      for (int64_t j = 0; j < d; ++j)
        g[static_cast<std::size_t>(i)] += at(C, d, i, j) * at(psi, d, row, j);
    for (int64_t i = 0; i < d; ++i)
      for (int64_t j = 0; j < d; ++j)
        C[static_cast<std::size_t>(i * d + j)] -=
            g[static_cast<std::size_t>(i)] * g[static_cast<std::size_t>(j)] / D;
  }
  for (const emulation::Order order : {emulation::Order::kForward, emulation::Order::kShuffled}) {
    auto q_run = q, s_run = s;
    std::vector<int64_t> picked(picks, -7);
    std::vector<double> utilities(picks, kNaN),
        workspace(static_cast<std::size_t>(selection_workspace(rows, d)), kNaN);
    emulation::Launcher launcher({order, false});
    launch_selection(
        launcher,
        SelectionArgs<float>{psi.data(), d, d, candidates.data(), rows, G.data(), q_run.data(),
                             s_run.data(), noise.data(), picks, picked.data(), utilities.data()},
        workspace.data());
    test::expect(picked == expected_picks, "other picks");
    expect_close(utilities, expected_utilities, 1e-11, "selection utilities");
  }
}

}  // namespace
}  // namespace ntkfast
