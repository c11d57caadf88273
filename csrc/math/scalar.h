// One number seen as a register of one lane.
//
// The functors of csrc/math are templates over a value type V: `float` or `double` on a GPU thread
// and in host tests, a SIMD pack (csrc/cpu/simd.h) in the CPU engine. This header gives plain
// numbers the operations that packs have, so that the mathematics is written once.
//
// Everything under csrc/math lives in an unnamed namespace on purpose: each translation unit is
// compiled for its own instruction set and must keep its own copy. A shared (weak) copy could put
// AVX-512 code on a machine that has none.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "core/host_device.h"

namespace ntkfast {
namespace {

/// Element type of a register type.
template <class V>
struct ScalarOf {
  using type = typename V::scalar;
};
template <>
struct ScalarOf<float> {
  using type = float;
};
template <>
struct ScalarOf<double> {
  using type = double;
};
template <class V>
using scalar_of = typename ScalarOf<V>::type;

NTKFAST_HD NTKFAST_INLINE float fma_of(float a, float b, float c) { return fmaf(a, b, c); }
NTKFAST_HD NTKFAST_INLINE double fma_of(double a, double b, double c) { return fma(a, b, c); }
#if defined(__CUDA_ARCH__)  // one instruction instead of two, and for NaN the same but as `b`
NTKFAST_HD NTKFAST_INLINE float max_of(float a, float b) { return fmaxf(a, b); }
NTKFAST_HD NTKFAST_INLINE float min_of(float a, float b) { return fminf(a, b); }
#else
NTKFAST_HD NTKFAST_INLINE float max_of(float a, float b) { return a > b ? a : b; }
NTKFAST_HD NTKFAST_INLINE float min_of(float a, float b) { return a < b ? a : b; }
#endif
NTKFAST_HD NTKFAST_INLINE double max_of(double a, double b) { return a > b ? a : b; }
NTKFAST_HD NTKFAST_INLINE double min_of(double a, double b) { return a < b ? a : b; }
NTKFAST_HD NTKFAST_INLINE float abs_of(float a) { return fabsf(a); }
NTKFAST_HD NTKFAST_INLINE double abs_of(double a) { return fabs(a); }
NTKFAST_HD NTKFAST_INLINE float sqrt_of(float a) { return sqrtf(a); }
NTKFAST_HD NTKFAST_INLINE double sqrt_of(double a) { return sqrt(a); }
NTKFAST_HD NTKFAST_INLINE float select(bool mask, float a, float b) { return mask ? a : b; }
NTKFAST_HD NTKFAST_INLINE double select(bool mask, double a, double b) { return mask ? a : b; }
NTKFAST_HD NTKFAST_INLINE bool all_of(bool mask) { return mask; }
/// u = whole + fraction with an integer `whole` and fraction in [-1/2, 1/2].
NTKFAST_HD NTKFAST_INLINE float split_fraction(float u, float* whole) {
  *whole = rintf(u);
  return u - *whole;
}
NTKFAST_HD NTKFAST_INLINE double split_fraction(double u, double* whole) {
  *whole = rint(u);
  return u - *whole;
}
NTKFAST_HD NTKFAST_INLINE float reciprocal(float a) { return 1.0f / a; }
NTKFAST_HD NTKFAST_INLINE double reciprocal(double a) { return 1.0 / a; }

/// p * 2^n for integer-valued n <= 127 (1023) and p in [0.7, 1.5]; zero where the result is not a
/// normal number.
NTKFAST_HD NTKFAST_INLINE float scale_by_power_of_two(float p, float n) {
  if (n < -126.0f) return 0.0f;
  const int32_t bits = (static_cast<int32_t>(n) + 127) << 23;
  float scale;
  memcpy(&scale, &bits, sizeof scale);
  return p * scale;
}
NTKFAST_HD NTKFAST_INLINE double scale_by_power_of_two(double p, double n) {
  if (n < -1022.0) return 0.0;
  const int64_t bits = (static_cast<int64_t>(n) + 1023) << 52;
  double scale;
  memcpy(&scale, &bits, sizeof scale);
  return p * scale;
}

/// z = mantissa * 2^exponent with mantissa in [0.75, 1.5), for a positive normal z. The interval is
/// centred on one so that logarithms near one come out of the polynomial alone, without cancelling
/// against the exponent.
NTKFAST_HD NTKFAST_INLINE float split_exponent(float z, float* exponent) {
  int32_t bits;
  memcpy(&bits, &z, sizeof bits);
  const int32_t e = (bits - 0x3f400000) >> 23;
  *exponent = static_cast<float>(e);
  bits -= e * (1 << 23);
  memcpy(&z, &bits, sizeof z);
  return z;
}
NTKFAST_HD NTKFAST_INLINE double split_exponent(double z, double* exponent) {
  int64_t bits;
  memcpy(&bits, &z, sizeof bits);
  const int64_t e = (bits - 0x3fe8000000000000) >> 52;
  *exponent = static_cast<double>(e);
  bits -= e * (int64_t{1} << 52);
  memcpy(&z, &bits, sizeof z);
  return z;
}

}  // namespace
}  // namespace ntkfast
