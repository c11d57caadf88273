// Matrices for the tests of kernels.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "cuda/context.cuh"
#include "test.h"

namespace ntkfast {
namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

template <class T = double>
std::vector<T> random_matrix(int64_t rows, int64_t cols, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<double> normal;
  std::vector<T> matrix(static_cast<std::size_t>(rows * cols));
  for (T& value : matrix) value = static_cast<T>(normal(random));
  return matrix;
}
template <class T>
double at(const std::vector<T>& matrix, int64_t cols, int64_t i, int64_t j) {
  return static_cast<double>(matrix[static_cast<std::size_t>(i * cols + j)]);
}
template <class A, class B>
void expect_close(const std::vector<A>& actual, const std::vector<B>& expected, double tolerance,
                  const char* what) {
  test::expect(actual.size() == expected.size(), std::string(what) + ": size");
  double largest = 1e-300;
  for (const B value : expected) largest = std::max(largest, std::abs(static_cast<double>(value)));
  for (std::size_t i = 0; i < actual.size(); ++i)
    test::expect(std::abs(static_cast<double>(actual[i]) - static_cast<double>(expected[i])) <=
                     tolerance * largest,
                 std::string(what) + " [" + std::to_string(i) + "]: " + std::to_string(actual[i]) +
                     " instead of " + std::to_string(expected[i]));
}
BFloat16 to_bfloat16(double value) {  // exact for eight significant bits
  return {static_cast<std::uint16_t>(bits_of(static_cast<float>(value)) >> 16)};
}
template <class Element>
Element element_of(double value) {
  if constexpr (sizeof(Element) == 2) {
    return to_bfloat16(value);
  } else {
    return static_cast<Element>(value);
  }
}

}  // namespace
}  // namespace ntkfast
