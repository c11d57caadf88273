// exp2 and log2 by polynomials, for any register type with the operations of scalar.h.
//
// Base two throughout: the change of base is folded into constants that are applied once per point
// or candidate. float: minimax coefficients fitted for these intervals (relative error before
// rounding 2e-9 and 3e-8). double: Taylor series carried to below one unit in the last place.
#pragma once

#include "math/scalar.h"

namespace ntkfast {
namespace {

constexpr double kLog2E = 1.4426950408889634;
constexpr double kLn2 = 0.6931471805599453;

/// c[0] + c[1] x + ... + c[N - 1] x^(N - 1)
template <class V, class T, int N>
NTKFAST_HD NTKFAST_INLINE V polynomial(V x, const T (&c)[N]) {
  V p(c[N - 1]);
  NTKFAST_UNROLL
  for (int i = N - 2; i >= 0; --i) p = fma_of(p, x, V(c[i]));
  return p;
}

// The fraction is centred on zero, so that 2^u near u = 0, the weight of the most probable class,
// is exact from both sides: an error there would not average out over points that are decided.
template <class V>
NTKFAST_HD NTKFAST_INLINE V exp2_fraction(V r, float) {  // r in [-1/2, 1/2]; exactly 1 at r = 0
  constexpr float c[] = {1.0f,          0.69314720f,   0.24022648f,   0.055503325f,
                         0.0096184374f, 0.0013398874f, 0.00015353362f};
  return polynomial(r, c);
}
template <class V>
NTKFAST_HD NTKFAST_INLINE V exp2_fraction(V r, double) {  // (ln 2)^i / i!
  constexpr double c[] = {1.0,
                          0.6931471805599453,
                          0.24022650695910072,
                          0.05550410866482158,
                          0.009618129107628477,
                          0.0013333558146428443,
                          0.0001540353039338161,
                          1.5252733804059841e-05,
                          1.321548679014431e-06,
                          1.01780860092397e-07,
                          7.054911620801123e-09,
                          4.4455382718708116e-10,
                          2.5678435993488206e-11,
                          1.3691488853904128e-12,
                          6.778726354822545e-14};
  return polynomial(r, c);
}

/// 2^u for u <= 127 (1023 in double); zero where the result would not be a normal number.
template <class V>
NTKFAST_HD NTKFAST_INLINE V exp2_of(V u) {
  V n(scalar_of<V>(0));
  const V fraction = split_fraction(u, &n);
  return scale_by_power_of_two(exp2_fraction(fraction, scalar_of<V>(0)), n);
}

template <class V>
NTKFAST_HD NTKFAST_INLINE V log2_mantissa(V m, float) {  // m in [0.75, 1.5); exactly 0 at m = 1
  constexpr float c[] = {1.4426950f,   -0.72134848f, 0.48090208f,  -0.36057592f, 0.28819151f,
                         -0.24272352f, 0.21632486f,  -0.17423017f, 0.078066671f};
  const V x = m - V(1.0f);
  return x * polynomial(x, c);
}
template <class V>
NTKFAST_HD NTKFAST_INLINE V log2_mantissa(V m, double) {  // 2 atanh((m - 1) / (m + 1)) / ln 2
  constexpr double c[] = {1.0,      1.0 / 3,  1.0 / 5,  1.0 / 7,  1.0 / 9,  1.0 / 11, 1.0 / 13,
                          1.0 / 15, 1.0 / 17, 1.0 / 19, 1.0 / 21, 1.0 / 23, 1.0 / 25};
  const V s = (m - V(1.0)) / (m + V(1.0));
  return V(2.0 * kLog2E) * s * polynomial(s * s, c);
}

/// log2 z of a positive normal number.
template <class V>
NTKFAST_HD NTKFAST_INLINE V log2_of(V z) {
  V exponent(scalar_of<V>(0));
  const V mantissa = split_exponent(z, &exponent);
  return exponent + log2_mantissa(mantissa, scalar_of<V>(0));
}

/// log2(1 - x) for x in [0, 1): what rounding took from 1 - x is put back to first order.
template <class V>
NTKFAST_HD NTKFAST_INLINE V log2_one_minus(V x) {
  using T = scalar_of<V>;
  const V u = V(T(1)) - x;
  const V lost = (V(T(1)) - u) - x;
  return fma_of(lost * V(T(kLog2E)), reciprocal(u), log2_of(u));
}

}  // namespace
}  // namespace ntkfast
