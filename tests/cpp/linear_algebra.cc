// The operations beside scoring, at ragged sizes, against plain loops in double.
#include <algorithm>
#include <limits>

#include "cpu/cholesky.h"
#include "cpu/condition_dense.h"
#include "cpu/condition_features.h"
#include "cpu/downdate_moments.h"
#include "cpu/product.h"
#include "cpu/quadratic_form.h"
#include "cpu/squared_norms.h"
#include "cpu/triangular_solve.h"
#include "cpu/weighted_gram.h"
#include "cpu/whiten.h"
#include "test.h"

namespace ntkfast {
namespace {

using test::expect;
using test::expect_near;
using test::expect_refused;
using test::Matrix;
using test::Random;
using test::view;

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
// About a panel, a register, a tile (rows, then columns) and a block of the factorisations.
constexpr std::int64_t kSizes[] = {0, 1, 2, 5, 13, 15, 17, 33, 65, 113, 129};

template <class T>
constexpr double unit() {
  return sizeof(T) == 4 ? 0x1p-24 : 0x1p-53;
}

/// Calls body(rows, columns, padding, random) for every pair of sizes.
template <class Body>
void for_sizes(Body&& body) {
  std::uint32_t seed = 0;
  for (const std::int64_t n : kSizes)
    for (const std::int64_t d : kSizes) {
      Random random(++seed);
      body(n, d, static_cast<std::int64_t>(seed % 3), random);
    }
}

/// sum_k a(i, k) b(k, j) and the sum of the absolute values.
struct Sum {
  double value = 0, size = 0;
  void add(double term) {
    value += term;
    size += std::fabs(term);
  }
};

std::string at(const char* name, std::int64_t i, std::int64_t j) {
  return std::string(name) + " (" + std::to_string(i) + ", " + std::to_string(j) + ")";
}

template <class T>
void whiten_and_product() {
  for_sizes([](std::int64_t n, std::int64_t d, std::int64_t padding, Random& random) {
    auto X = random.matrix<T>(n, d, padding);
    auto W = random.matrix<double>(d, d, padding);
    Matrix<T> psi(n, d, padding);
    whiten_cpu(X.view(), W.view(), psi.view(), {});
    const std::int64_t k = padding * 3;
    auto B = random.matrix<double>(d, k);
    Matrix<double> Y(n, k);
    product_cpu(X.view(), B.view(), Y.view(), {});
    for (std::int64_t i = 0; i < n; ++i) {
      for (std::int64_t j = 0; j < d; ++j) {
        Sum sum;
        for (std::int64_t p = 0; p < d; ++p) sum.add(static_cast<double>(X(i, p)) * W(j, p));
        expect_near(psi(i, j), sum.value, 2 * unit<T>() * (std::fabs(sum.value)) + 1e-14 * sum.size,
                    at("whiten", i, j));
      }
      for (std::int64_t j = 0; j < k; ++j) {
        Sum sum;
        for (std::int64_t p = 0; p < d; ++p) sum.add(static_cast<double>(X(i, p)) * B(p, j));
        expect_near(Y(i, j), sum.value, 1e-14 * sum.size, at("product", i, j));
      }
    }
  });
}
NTKFAST_TEST(whiten_and_product_float) { whiten_and_product<float>(); }
NTKFAST_TEST(whiten_and_product_double) { whiten_and_product<double>(); }

template <class T>
void deep_products() {  // deeper than the slices of 4096 that are packed at a time
  Random random(1);
  const std::int64_t d = 4099;
  auto X = random.matrix<T>(2, d);
  auto B = random.matrix<double>(d, 2);
  Matrix<double> Y(2, 2), G(2, 2);
  product_cpu(X.view(), B.view(), Y.view(), {});
  auto tall = random.matrix<T>(d, 2);
  std::vector<double> weights = random.vector(d);
  weighted_gram_cpu(tall.view(), view(weights), G.view(), {});
  for (std::int64_t i = 0; i < 2; ++i)
    for (std::int64_t j = 0; j < 2; ++j) {
      Sum product, gram;
      for (std::int64_t p = 0; p < d; ++p) {
        product.add(static_cast<double>(X(i, p)) * B(p, j));
        gram.add(weights[p] * static_cast<double>(tall(p, i)) * static_cast<double>(tall(p, j)));
      }
      expect_near(Y(i, j), product.value, 1e-13 * product.size, at("product", i, j));
      expect_near(G(i, j), gram.value, 1e-13 * gram.size, at("weighted_gram", i, j));
    }
}
NTKFAST_TEST(deep_products_float) { deep_products<float>(); }
NTKFAST_TEST(deep_products_double) { deep_products<double>(); }

template <class T>
void moments() {
  for_sizes([](std::int64_t n, std::int64_t d, std::int64_t padding, Random& random) {
    auto X = random.matrix<T>(n, d, padding);
    auto G = random.matrix<double>(d, d, padding);
    auto weights = random.vector(n), g = random.vector(d), h = random.vector(d);
    Matrix<double> gram(d, d, padding);
    std::vector<double> q(static_cast<std::size_t>(n)), s(static_cast<std::size_t>(n));
    weighted_gram_cpu(X.view(), view(weights), gram.view(), {});
    quadratic_form_cpu(X.view(), G.view(), view(q), {});
    squared_norms_cpu(X.view(), view(s));
    for (std::int64_t i = 0; i < d; ++i)
      for (std::int64_t j = 0; j < d; ++j) {
        Sum sum;
        for (std::int64_t p = 0; p < n; ++p)
          sum.add(weights[p] * static_cast<double>(X(p, i)) * static_cast<double>(X(p, j)));
        expect_near(gram(i, j), sum.value, 1e-14 * sum.size, at("weighted_gram", i, j));
        expect(gram(i, j) == gram(j, i), at("weighted_gram is not symmetric", i, j));
      }
    const auto before_q = q, before_s = s;
    downdate_moments_cpu(X.view(), view(g), view(h), 1.3, 0.7, view(q), view(s));
    for (std::int64_t i = 0; i < n; ++i) {
      Sum form, norm, alpha, beta;
      for (std::int64_t p = 0; p < d; ++p) {
        for (std::int64_t r = 0; r < d; ++r)
          form.add(static_cast<double>(X(i, p)) * G(p, r) * static_cast<double>(X(i, r)));
        norm.add(static_cast<double>(X(i, p)) * static_cast<double>(X(i, p)));
        alpha.add(static_cast<double>(X(i, p)) * g[p]);
        beta.add(static_cast<double>(X(i, p)) * h[p]);
      }
      expect_near(before_q[i], form.value, 1e-13 * form.size, at("quadratic_form", i, d));
      expect_near(before_s[i], norm.value, 1e-14 * norm.size, at("squared_norms", i, d));
      const double a = alpha.value, size = alpha.size * (alpha.size + beta.size);
      const double expected = before_q[i] - 2 * a * beta.value / 0.7 + a * a * 1.3 / 0.49;
      expect_near(q[i], expected, 1e-13 * (std::fabs(before_q[i]) + 4 * size), at("q", i, d));
      expect_near(s[i], before_s[i] - a * a / 0.7, 1e-13 * (before_s[i] + 2 * size), at("s", i, d));
    }
  });
}
NTKFAST_TEST(moments_float) { moments<float>(); }
NTKFAST_TEST(moments_double) { moments<double>(); }

template <class T>
void conditioning() {
  for_sizes([](std::int64_t n, std::int64_t d, std::int64_t padding, Random& random) {
    const std::int64_t b = 1 + padding * 8;
    auto psi = random.matrix<T>(n, d, padding);
    auto U = random.matrix<double>(b, d), C = random.matrix<double>(b, d, padding);
    const auto before = psi;
    condition_features_cpu(psi.view(), U.view(), C.view());
    for (std::int64_t i = 0; i < n; ++i) {
      std::vector<Sum> projection(static_cast<std::size_t>(b));
      for (std::int64_t r = 0; r < b; ++r)
        for (std::int64_t p = 0; p < d; ++p)
          projection[r].add(static_cast<double>(before(i, p)) * U(r, p));
      for (std::int64_t j = 0; j < d; ++j) {
        double expected = before(i, j), size = std::fabs(expected);
        for (std::int64_t r = 0; r < b; ++r) {
          expected -= projection[r].value * C(r, j);
          size += projection[r].size * std::fabs(C(r, j));
        }
        expect_near(psi(i, j), expected, 2 * unit<T>() * std::fabs(expected) + 1e-13 * size,
                    at("condition_features", i, j));
      }
    }
    Matrix<T> S(n, n, padding);
    for (std::int64_t i = 0; i < n; ++i)
      for (std::int64_t j = 0; j <= i; ++j) S(i, j) = S(j, i) = static_cast<T>(random.normal());
    auto V = random.matrix<double>(b, n, padding);
    const auto S_before = S;
    condition_dense_cpu(S.view(), V.view());
    for (std::int64_t i = 0; i < n; ++i)
      for (std::int64_t j = 0; j < n; ++j) {
        double expected = S_before(i, j), size = std::fabs(expected);
        for (std::int64_t r = 0; r < b; ++r) {
          expected -= V(r, i) * V(r, j);
          size += std::fabs(V(r, i) * V(r, j));
        }
        // Subtracted in double and rounded once.
        expect_near(S(i, j), expected,
                    unit<T>() * std::fabs(expected) + (b + 4) * unit<double>() * size,
                    at("condition_dense", i, j));
        expect(S(i, j) == S(j, i), at("condition_dense is not symmetric", i, j));
      }
  });
}
NTKFAST_TEST(conditioning_float) { conditioning<float>(); }
NTKFAST_TEST(conditioning_double) { conditioning<double>(); }

Matrix<double> positive_definite(std::int64_t n, Random& random) {
  const auto X = random.matrix<double>(n, n);
  Matrix<double> A(n, n);
  for (std::int64_t i = 0; i < n; ++i)
    for (std::int64_t j = 0; j < n; ++j) {
      Sum sum;
      for (std::int64_t p = 0; p < n; ++p) sum.add(X(i, p) * X(j, p) / n);
      A(i, j) = sum.value + (i == j);
    }
  return A;
}

void expect_factor(const Matrix<double>& L, const Matrix<double>& A) {
  for (std::int64_t i = 0; i < A.rows; ++i)
    for (std::int64_t j = 0; j < A.rows; ++j) {
      Sum sum;
      for (std::int64_t p = 0; p <= std::min(i, j); ++p) sum.add(L(i, p) * L(j, p));
      expect_near(sum.value, A(i, j), 1e-13 * (1 + sum.size), at("L L^T", i, j));
      if (j > i) expect(L(i, j) == 0, at("L is not lower", i, j));
    }
}

Matrix<double> lower_of(const Matrix<double>& A, double above, std::int64_t padding) {
  Matrix<double> L(A.rows, A.rows, padding);
  for (std::int64_t i = 0; i < A.rows; ++i)
    for (std::int64_t j = 0; j < A.rows; ++j) L(i, j) = j <= i ? A(i, j) : above;
  return L;
}

NTKFAST_TEST(factorisation) {
  for (const std::int64_t n : {0, 1, 2, 63, 64, 65, 129, 200}) {
    Random random(static_cast<std::uint32_t>(n));
    const auto A = positive_definite(n, random);
    auto L = lower_of(A, kNaN, n % 3);
    cholesky_cpu(L.view(), {});
    expect_factor(L, A);
  }
}

NTKFAST_TEST(triangular_systems) {
  for (const std::int64_t n : {0, 1, 2, 63, 64, 65, 129, 200})
    for (const std::int64_t m : {0, 1, 7, 63, 65, 257}) {
      Random random(static_cast<std::uint32_t>(n + 1000 * m));
      auto L = random.matrix<double>(n, n, 2);
      for (std::int64_t i = 0; i < n; ++i)
        for (std::int64_t j = 0; j < n; ++j)
          L(i, j) = j > i ? kNaN : j == i ? 2.0 : L(i, j) / static_cast<double>(n);
      const auto B = random.matrix<double>(n, m, m % 2);
      for (const bool transpose : {false, true}) {
        auto X = B;
        triangular_solve_cpu(L.view(), X.view(), transpose, {});
        for (std::int64_t i = 0; i < n; ++i)
          for (std::int64_t j = 0; j < m; ++j) {
            Sum sum;
            for (std::int64_t p = transpose ? i : 0; p < (transpose ? n : i + 1); ++p)
              sum.add((transpose ? L(p, i) : L(i, p)) * X(p, j));
            expect_near(sum.value, B(i, j), 1e-13 * (sum.size + 1), at("L X", i, j));
          }
      }
    }
}

NTKFAST_TEST(systems_that_have_no_solution) {
  for (const std::int64_t row : {0, 5, 63, 64, 99}) {
    Matrix<double> A(100, 100), B(100, 1);
    for (std::int64_t i = 0; i < 100; ++i) A(i, i) = i == row ? 0 : 1;
    expect_refused([&] { triangular_solve_cpu(A.view(), B.view(), false, {}); },
                   "diagonal element " + std::to_string(row));
    for (const double value : {0.0, -1.0, kNaN}) {
      auto L = A;
      L(row, row) = value;
      expect_refused([&] { cholesky_cpu(L.view(), {}); }, "(row " + std::to_string(row) + ")");
    }
  }
}

NTKFAST_TEST(arguments_that_do_not_fit) {
  Matrix<float> X(4, 3);
  Matrix<double> square(3, 3), wide(3, 4), Y(4, 3);
  std::vector<double> four(4), three(3);
  expect_refused([&] { whiten_cpu(X.view(), wide.view(), X.view(), {}); },
                 "W: expected shape (3, 3), got (3, 4)");
  expect_refused([&] { whiten_cpu(X.view(), square.view(), Y.view(), {}); },
                 "psi: expected float32, got float64");
  expect_refused([&] { weighted_gram_cpu(X.view(), view(three), square.view(), {}); },
                 "weights: expected shape (4,), got (3,)");
  TensorView column = square.view();
  std::swap(column.stride[0], column.stride[1]);
  expect_refused([&] { quadratic_form_cpu(X.view(), column, view(four), {}); },
                 "G: rows must be contiguous");
  TensorView strided = view(four);
  strided.stride[0] = 2;
  expect_refused([&] { squared_norms_cpu(X.view(), strided); }, "s: expected a C-contiguous array");
  TensorView elsewhere = X.view();
  elsewhere.device = Device::kCuda;
  expect_refused([&] { squared_norms_cpu(elsewhere, view(four)); }, "in host memory");
}

}  // namespace
}  // namespace ntkfast
