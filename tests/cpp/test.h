// The few lines a C++ test needs, and the arrays it works on.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <initializer_list>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "core/check.h"

namespace ntkfast {
namespace test {

struct Test {
  const char* name;
  void (*run)();
};
inline std::vector<Test>& tests() {
  static std::vector<Test> all;
  return all;
}
struct Registration {
  Registration(const char* name, void (*run)()) { tests().push_back({name, run}); }
};
#define NTKFAST_TEST(name)                                                 \
  static void name();                                                      \
  static const ::ntkfast::test::Registration register_##name(#name, name); \
  static void name()

inline void expect(bool condition, const std::string& what) {
  if (!condition) throw std::runtime_error(what);
}

inline void expect_near(double found, double expected, double tolerance, const std::string& what) {
  if (std::fabs(found - expected) <= tolerance) return;  // false for NaN too
  char text[160];
  std::snprintf(text, sizeof text, ": expected %.17g, found %.17g, off by %.3g > %.3g", expected,
                found, found - expected, tolerance);
  throw std::runtime_error(what + text);
}

/// Runs `call`, which must throw InvalidArgument with `part` in its message.
template <class Call>
void expect_refused(Call&& call, const std::string& part) {
  try {
    call();
  } catch (const InvalidArgument& error) {
    expect(std::string(error.what()).find(part) != std::string::npos,
           "expected an error about '" + part + "', got '" + error.what() + "'");
    return;
  }
  throw std::runtime_error("expected an error about '" + part + "', got none");
}

/// A matrix in a block of memory that ends where the last row does, so that the address sanitizer
/// sees every step beyond it; `padding` elements lie between rows.
template <class T>
struct Matrix {
  std::int64_t rows, cols, row_stride;
  std::vector<T> data;

  Matrix(std::int64_t num_rows, std::int64_t num_cols, std::int64_t padding = 0)
      : rows(num_rows),
        cols(num_cols),
        row_stride(num_cols + padding),
        data(static_cast<std::size_t>(num_rows == 0 ? 0 : (num_rows - 1) * row_stride + num_cols)) {
  }
  T& operator()(std::int64_t i, std::int64_t j) { return data[i * row_stride + j]; }
  const T& operator()(std::int64_t i, std::int64_t j) const { return data[i * row_stride + j]; }

  std::vector<long double> row(std::int64_t i) const {
    const auto first = data.begin() + i * row_stride;
    return std::vector<long double>(first, first + cols);
  }

  TensorView view() {
    TensorView result;
    result.data = data.data();
    result.dtype = DTypeOf<T>::value;
    result.ndim = 2;
    result.shape[0] = rows;
    result.shape[1] = cols;
    result.stride[0] = row_stride;
    result.stride[1] = 1;
    return result;
  }
};

template <class T>
TensorView view(std::vector<T>& vector) {
  TensorView result;
  result.data = vector.data();
  result.dtype = DTypeOf<T>::value;
  result.ndim = 1;
  result.shape[0] = static_cast<std::int64_t>(vector.size());
  result.stride[0] = 1;
  return result;
}

/// Numbers of every test, the same on every machine.
class Random {
 public:
  explicit Random(std::uint32_t seed) : engine_(seed) {}
  double uniform(double low = 0, double high = 1) {
    return low + (high - low) * (static_cast<double>(engine_()) / 4294967296.0);
  }
  /// Roughly normal, with variance one.
  double normal() {
    double sum = -6;
    for (int i = 0; i < 12; ++i) sum += uniform();
    return sum;
  }
  std::int64_t below(std::int64_t n) { return static_cast<std::int64_t>(uniform() * n); }
  template <class T>
  Matrix<T> matrix(std::int64_t rows, std::int64_t cols, std::int64_t padding = 0) {
    Matrix<T> result(rows, cols, padding);
    for (T& value : result.data) value = static_cast<T>(normal());
    return result;
  }
  std::vector<double> vector(std::int64_t n) {
    std::vector<double> result(static_cast<std::size_t>(n));
    for (double& value : result) value = normal();
    return result;
  }

 private:
  std::mt19937 engine_;
};

}  // namespace test
}  // namespace ntkfast
