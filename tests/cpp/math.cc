// The functors of csrc/math, for plain numbers and for registers of the baseline, against long
// double.
#include <algorithm>
#include <limits>

#include "cpu/simd.h"
#include "math/scalar_criteria.h"
#include "oracle.h"
#include "test.h"

namespace ntkfast {
namespace {

using test::expect;
using test::expect_near;
using test::Random;

/// A register of one lane or of several: fill every lane, read every lane.
template <class V>
struct Lanes {
  static constexpr int count = V::kLanes;
  static V load(const scalar_of<V>* p) { return V::load(p); }
  static void store(V v, scalar_of<V>* p) { v.store(p); }
};
template <>
struct Lanes<float> {
  static constexpr int count = 1;
  static float load(const float* p) { return *p; }
  static void store(float v, float* p) { *p = v; }
};
template <>
struct Lanes<double> {
  static constexpr int count = 1;
  static double load(const double* p) { return *p; }
  static void store(double v, double* p) { *p = v; }
};

template <class T>
constexpr double epsilon() {
  return std::numeric_limits<T>::epsilon();
}

/// Loops unrolled for this number of classes: one for plain numbers, another for lanes, for each
/// costs the compiler seconds.
template <class V>
constexpr int kUnrolled = Lanes<V>::count == 1 ? 2 : 10;

/// f of every number, through registers of V.
template <class V, class Function>
std::vector<scalar_of<V>> map(std::vector<scalar_of<V>> x, Function f) {
  constexpr std::size_t kCount = Lanes<V>::count;
  const std::size_t n = x.size();
  while (x.size() % kCount != 0) x.push_back(x[0]);
  for (std::size_t i = 0; i < x.size(); i += kCount)
    Lanes<V>::store(f(Lanes<V>::load(&x[i])), &x[i]);
  x.resize(n);
  return x;
}

std::string at(const char* name, double x) {
  char text[80];
  std::snprintf(text, sizeof text, "%s at %.17g", name, x);
  return text;
}

template <class V>
void exponential() {
  using T = scalar_of<V>;
  const double highest = std::numeric_limits<T>::max_exponent - 1;
  const double lowest = std::numeric_limits<T>::min_exponent - 1;
  std::vector<T> x{T(0), T(-0.0), T(1), T(-1), T(0.5), T(lowest), T(highest), T(1e-30), T(-1e-30)};
  Random random(1);
  for (int i = 0; i < 20000; ++i) x.push_back(static_cast<T>(random.uniform(lowest, highest)));
  for (int i = 0; i < 5000; ++i) x.push_back(static_cast<T>(random.uniform(-2, 2)));
  const auto y = map<V>(x, [](V v) { return exp2_of(v); });
  for (std::size_t i = 0; i < x.size(); ++i) {
    const double expected = static_cast<double>(exp2l(x[i]));
    expect_near(y[i], expected, 2.5 * epsilon<T>() * expected, at("exp2", x[i]));
  }
  expect(sizeof(T) == 8 || y[0] == T(1), "exp2(0) is exactly one in float");
  for (const double below : {lowest - 1, lowest - 30, -5e3, -1e6, -1e15, -1e30}) {
    const auto zero = map<V>({static_cast<T>(below)}, [](V v) { return exp2_of(v); });
    expect(zero[0] == T(0), at("exp2 does not vanish", below));
  }
}

template <class V>
void logarithm() {
  using T = scalar_of<V>;
  std::vector<T> x{T(1),
                   T(0.75),
                   T(1.5),
                   T(2),
                   T(0.5),
                   std::numeric_limits<T>::min(),
                   std::numeric_limits<T>::max()};
  x.push_back(std::nextafter(T(0.75), T(0)));
  x.push_back(std::nextafter(T(1.5), T(0)));
  Random random(2);
  const double range = std::numeric_limits<T>::max_exponent - 2;
  for (int i = 0; i < 20000; ++i) x.push_back(static_cast<T>(exp2(random.uniform(-range, range))));
  for (int i = 0; i < 5000; ++i) x.push_back(static_cast<T>(random.uniform(0.7, 1.6)));
  for (int i = 0; i < 5000; ++i)
    x.push_back(static_cast<T>(1 + random.uniform(-1, 1) * exp2(-random.uniform(1, 50))));
  const auto y = map<V>(x, [](V v) { return log2_of(v); });
  for (std::size_t i = 0; i < x.size(); ++i) {
    const double expected = static_cast<double>(log2l(x[i]));
    expect_near(y[i], expected, 3 * epsilon<T>() * std::fabs(expected), at("log2", x[i]));
  }
  expect(y[0] == T(0), "log2(1) is exactly zero");

  x = {T(0), T(0.5), T(1e-30), T(1e-7), T(1e-16)};
  for (int i = 0; i < 5000; ++i) x.push_back(static_cast<T>(random.uniform(0, 0.999)));
  for (int i = 0; i < 5000; ++i) x.push_back(static_cast<T>(exp2(-random.uniform(1, 100))));
  const auto z = map<V>(x, [](V v) { return log2_one_minus(v); });
  for (std::size_t i = 0; i < x.size(); ++i) {
    const double expected = static_cast<double>(log1pl(-static_cast<long double>(x[i]))) * kLog2E;
    expect_near(z[i], expected, 4 * epsilon<T>() * std::fabs(expected), at("log2(1 - x)", x[i]));
  }
}

template <class V>
void arithmetic() {
  using T = scalar_of<V>;
  Random random(3);
  std::vector<T> x;
  for (int i = 0; i < 4000; ++i)
    x.push_back(static_cast<T>(random.uniform(-2, 2) * exp2(random.uniform(-30, 30))));
  const auto inverse = map<V>(x, [](V v) { return reciprocal(v); });
  const auto root = map<V>(x, [](V v) { return sqrt_of(abs_of(v)); });
  const auto clipped = map<V>(x, [](V v) { return min_of(max_of(v, V(T(-1))), V(T(1))); });
  const auto sign = map<V>(x, [](V v) { return select(v > V(T(0)), V(T(1)), -V(T(1))); });
  const auto near_zero = map<V>(
      x, [](V v) { return select((v < V(T(1))) & (V(T(-1)) < v) & (v <= v), V(T(1)), V(T(0))); });
  const auto fused = map<V>(x, [](V v) { return fma_of(v, V(T(3)), V(T(0.5))) / V(T(2)); });
  for (std::size_t i = 0; i < x.size(); ++i) {
    const double v = x[i];
    expect_near(inverse[i] * v, 1, 2 * epsilon<T>(), at("reciprocal", v));
    expect_near(root[i], std::sqrt(std::fabs(v)), epsilon<T>() * root[i], at("sqrt", v));
    expect(clipped[i] == std::min(T(1), std::max(T(-1), x[i])), at("clip", v));
    expect(sign[i] == (v > 0 ? T(1) : T(-1)), at("sign", v));
    expect(near_zero[i] == (v < 1 && v > -1 ? T(1) : T(0)), at("comparison", v));
    expect_near(fused[i], (v * 3 + 0.5) / 2, 2 * epsilon<T>() * (3 * std::fabs(v) + 1),
                at("fma", v));
  }
}

#define FOR_EVERY_REGISTER(function)                                \
  NTKFAST_TEST(function##_float) { function<float>(); }             \
  NTKFAST_TEST(function##_double) { function<double>(); }           \
  NTKFAST_TEST(function##_float_lanes) { function<Pack<float>>(); } \
  NTKFAST_TEST(function##_double_lanes) { function<Pack<double>>(); }
FOR_EVERY_REGISTER(exponential)
FOR_EVERY_REGISTER(logarithm)
FOR_EVERY_REGISTER(arithmetic)

// --- Softmax after a rank-one change ---

template <class V>
struct Values {  // element j in every lane
  const scalar_of<V>* data;
  V operator()(int j) const { return V(data[j]); }
};

/// Softmax of l_j + A [j = y] in units of log2, and from it what the criteria take.
struct Exact {
  long double entropy, top, gini, log_sum;  // in units of log2; log_sum relative to l = 0
  Exact(const std::vector<double>& F, const std::vector<double>& B, double A, int y) {
    const int k = static_cast<int>(F.size());
    std::vector<long double> l(F.size());
    for (int j = 0; j < k; ++j)
      l[j] = F[j] - static_cast<long double>(A) * B[j] + (j == y ? A : 0.0L);
    const long double largest = *std::max_element(l.begin(), l.end());
    long double Z = 0, N = 0, squares = 0;
    for (const long double value : l) {
      const long double w = exp2l(value - largest);
      Z += w;
      squares += w * w;
      N += w > 0 ? w * (value - largest) : 0;
    }
    entropy = log2l(Z) - N / Z;
    top = 1 / Z;
    gini = 1 - squares / (Z * Z);
    log_sum = largest + log2l(Z);
  }
};

enum class Path { kModerate, kLarge, kAny, kChosen };

/// Errors of every label, in units of what rounding A, F and their sum may do.
template <class V, int K>
void labels(Path path, double step, double spread, int k, std::uint32_t seed) {
  using T = scalar_of<V>;
  Random random(seed);
  std::vector<T> F(static_cast<std::size_t>(k)), B(F.size());
  for (T& value : F) value = static_cast<T>(-spread * random.uniform());
  if (random.uniform() < 0.3) F[static_cast<std::size_t>(random.below(k))] = T(-1e30);
  F[static_cast<std::size_t>(random.below(k))] = T(0);
  if (random.uniform() < 0.3) F[static_cast<std::size_t>(random.below(k))] = T(0);  // a tie
  double bound = 1;
  for (T& value : B) {
    value = static_cast<T>(random.uniform(-0.5, 0.5));
    bound = std::max(bound, 1 + std::fabs(static_cast<double>(value)));
  }
  const T A = static_cast<T>(step);
  const std::vector<double> F_(F.begin(), F.end()), B_(B.begin(), B.end());
  std::vector<V> scratch(2 * F.size());
  struct Body {
    std::vector<T> Z, N, squares, top, reference;
    void operator()(int, const LabelSums<V>& l) {
      for (auto [to, from] : {std::pair{&Z, l.Z},
                              {&N, l.N},
                              {&squares, l.squares},
                              {&top, l.top},
                              {&reference, l.reference}}) {
        T lanes[Lanes<V>::count];
        Lanes<V>::store(from, lanes);
        for (const T value : lanes)
          expect(value == lanes[0] && std::isfinite(value), "lanes differ or are not finite");
        to->push_back(lanes[0]);
      }
    }
  } body;
  const Values<V> F_of{F.data()}, B_of{B.data()};
  LabelScratch<K, V> memory(scratch.data(), k);
  switch (path) {
    case Path::kModerate:
      moderate_labels<K>(k, V(A), F_of, B_of, memory, body);
      break;
    case Path::kLarge:
      large_labels<K>(k, V(A), F_of, B_of, memory, body);
      break;
    case Path::kAny:
      any_labels<K>(k, V(A), F_of, B_of, memory, body);
      break;
    case Path::kChosen:
      for_each_label<K>(k, V(A), V(static_cast<T>(bound)), F_of, B_of, scratch.data(), body);
  }
  expect(body.Z.size() == F.size(), "a label was left out");
  // l is known to its own rounding; logits that are too low to matter need not be.
  const double size = std::min(std::fabs(step), 1e15) * 1.5 + std::min(spread, 200.0);
  const double tolerance = epsilon<T>() * (16 + 4 * size);
  for (int y = 0; y < k; ++y) {
    const Exact exact(F_, B_, A, y);
    const double Z = body.Z[y], N = body.N[y];
    expect(Z > 0, "Z is not positive");
    char text[160];
    std::snprintf(text, sizeof text, " of label %d, A = %g, spread %g, k = %d, seed %u", y, step,
                  spread, k, seed);
    // An entropy between zero and log2 k cannot be off by more.
    const double entropy_tolerance = std::min(tolerance * (1 + std::log2(k)), 1.0 + std::log2(k));
    expect_near(std::log2(Z) - N / Z, static_cast<double>(exact.entropy), entropy_tolerance,
                std::string("entropy") + text);
    expect_near(body.top[y] / Z, static_cast<double>(exact.top), std::min(tolerance, 1.0),
                std::string("largest probability") + text);
    expect_near(1 - body.squares[y] / (Z * Z), static_cast<double>(exact.gini),
                std::min(2 * tolerance, 1.0), std::string("squares") + text);
    expect_near(body.reference[y] + std::log2(Z), static_cast<double>(exact.log_sum), tolerance * 2,
                std::string("log Z") + text);
  }
}

template <class V>
void softmax_rank_one() {
  std::uint32_t seed = 0;
  const auto every_k = [&](Path path, double step, double spread) {
    for (const double A : {step, -step}) {
      labels<V, kUnrolled<V>>(path, A, spread, kUnrolled<V>, ++seed);
      for (const int k : {2, 3, 10, 26}) {
        labels<V, 0>(path, A, spread, k, ++seed);
        labels<V, kAnyClasses>(path, A, spread, k, seed);
      }
    }
  };
  for (int repeat = 0; repeat < 2; ++repeat) {
    for (const double spread : {0.0, 0.1, 3.0, 40.0, 145.0, 1e4}) {
      for (const double step : {0.0, 1e-6, 0.1, 1.0, 2.6}) every_k(Path::kModerate, step, spread);
      for (const double step : {0.0, 1e-6, 1.0, 4.0, 10.0, 16.0})
        every_k(Path::kLarge, step, spread);
      for (const double step : {0.0, 1e-6, 1.0, 10.0, 16.0, 100.0, 1e4, 1e9, 1e15}) {
        every_k(Path::kAny, step, spread);
        every_k(Path::kChosen, step, spread);
      }
    }
  }
}
FOR_EVERY_REGISTER(softmax_rank_one)

// --- Criteria ---

/// Every number of one pair (x, c).
struct Pair {
  int k;
  bool cross_entropy;
  double label_scale, temperature, ridge, residual_temperature, radius, covered, S, s_x, s_c, noise;
  std::vector<double> F_x, f_x, q, F_c, f_c, P;

  Pair(Random& random, int classes, double spread) : k(classes) {
    cross_entropy = random.uniform() < 0.5;
    label_scale = cross_entropy ? 4 : 1;
    temperature = random.uniform() < 0.5 ? 0.3 : 1.0;
    ridge = random.uniform(0.1, 2);
    residual_temperature = random.uniform(0.5, 3);
    radius = random.uniform(0.3, 2);
    covered = random.uniform() < 0.3 ? 0 : random.uniform();
    const double x = random.normal(), c = random.normal(), y = random.normal();
    S = x * c;
    s_x = x * x + y * y;
    s_c = c * c;
    noise =
        random.uniform() < 0.1 ? std::numeric_limits<double>::infinity() : random.uniform(0.1, 2);
    for (int j = 0; j < k; ++j) {
      for (auto* v : {&F_x, &f_x, &F_c, &f_c}) v->push_back(spread * random.normal());
      q.push_back(random.uniform());
      P.push_back(random.uniform() < 0.2 ? 0.0 : random.uniform());
    }
    double total = 0;
    for (const double value : q) total += value;
    for (double& value : q) value /= total;
  }
  PointInputs point() const { return {F_x.data(), f_x.data(), q.data(), s_x, covered}; }
  CandidateInputs candidate() const { return {F_c.data(), f_c.data(), P.data(), s_c, noise}; }
  Settings settings() const {
    return {k, cross_entropy, label_scale, temperature, ridge, residual_temperature, radius};
  }

  double value(const std::string& criterion, bool look_ahead) const {
    const auto wide = [](const std::vector<double>& v) {
      return oracle::Vector(v.begin(), v.end());
    };
    if (!look_ahead)
      return static_cast<double>(
          oracle::of_covariance(criterion, S, s_c, s_c + noise, s_x, s_x + ridge, covered, radius));
    const auto after = [&](int y) {
      auto f_plus = wide(F_x);
      const auto r =
          oracle::residual(y, wide(F_c), cross_entropy, label_scale, residual_temperature);
      for (int j = 0; j < k; ++j) f_plus[j] += static_cast<long double>(S) / (s_c + noise) * r[j];
      return f_plus;
    };
    return static_cast<double>(
        oracle::look_ahead(criterion, after, wide(f_x), wide(q), wide(f_c), wide(P), temperature));
  }
};

template <class V, int K, class Criterion>
double found(const Pair& pair) {
  using T = scalar_of<V>;
  std::vector<T> point(static_cast<std::size_t>(Criterion::point_size(pair.k)));
  std::vector<T> candidate(static_cast<std::size_t>(Criterion::candidate_size(pair.k)));
  Criterion::prepare_point(pair.settings(), pair.point(), Prepared<T>{point.data(), 1});
  Criterion::prepare_candidate(pair.settings(), pair.candidate(), Prepared<T>{candidate.data(), 1});
  for (const T value : point) expect(std::isfinite(value), "a prepared point is not finite");
  for (const T value : candidate) expect(std::isfinite(value), "a candidate is not finite");
  std::vector<V> scratch(2 * static_cast<std::size_t>(pair.k));
  const V result =
      Criterion::template value<K>(pair.k, V(static_cast<T>(pair.S)), Values<V>{point.data()},
                                   Values<V>{candidate.data()}, scratch.data());
  T lanes[Lanes<V>::count];
  Lanes<V>::store(result, lanes);
  return lanes[0];
}

template <class V, int K>
void criteria_of(int k, std::uint32_t seed) {
  Random random(seed);
  const double spread = seed % 2 ? 1.0 : 6.0;
  const Pair pair(random, k, spread);
  for (int index = 0; index < Criteria::size; ++index) {
    visit_scalar(index, [&](auto criterion) {
      using Criterion = decltype(criterion);
      const double expected = pair.value(Criterion::name, has<Criterion>(kLookAhead));
      // f+ is rounded at its own size, divided by the temperature; a flip is exact or wrong.
      const double size = 40 * spread / pair.temperature;
      const double tolerance = epsilon<scalar_of<V>>() * (8 * std::fabs(expected) + k * size);
      expect_near(found<V, K, Criterion>(pair), expected, tolerance,
                  std::string(Criterion::name) + ", seed " + std::to_string(seed));
    });
  }
}

template <class V>
void criteria() {
  for (std::uint32_t seed = 1; seed <= 100; ++seed) {
    criteria_of<V, kUnrolled<V>>(kUnrolled<V>, seed);
    for (const int k : {2, 3, 10, 17}) criteria_of<V, 0>(k, seed);
  }
}
FOR_EVERY_REGISTER(criteria)

}  // namespace
}  // namespace ntkfast
