// One register of numbers, for the instruction set this translation unit is compiled for.
//
// Pack<float> and Pack<double> have the operations that csrc/math needs (scalar.h lists them). Only
// intrinsics and plain loops: nothing here may instantiate a shared library template (see scalar.h
// on unnamed namespaces).
#pragma once

#include "math/scalar.h"

#if defined(__AVX512F__) || (defined(__AVX2__) && defined(__FMA__))
#include <immintrin.h>
#endif

namespace ntkfast {
namespace {

template <class T>
struct Pack;
template <class T>
struct PackMask;

#if defined(__AVX512F__)

template <>
struct PackMask<float> {
  __mmask16 m;
};
template <>
struct PackMask<double> {
  __mmask8 m;
};

template <>
struct Pack<float> {
  using scalar = float;
  static constexpr int kLanes = 16;
  __m512 v;
  Pack() = default;
  NTKFAST_INLINE Pack(__m512 x) : v(x) {}
  NTKFAST_INLINE explicit Pack(float x) : v(_mm512_set1_ps(x)) {}
  static NTKFAST_INLINE Pack load(const float* p) { return _mm512_loadu_ps(p); }
  NTKFAST_INLINE void store(float* p) const { _mm512_storeu_ps(p, v); }
  NTKFAST_INLINE float sum() const { return _mm512_reduce_add_ps(v); }
};
template <>
struct Pack<double> {
  using scalar = double;
  static constexpr int kLanes = 8;
  __m512d v;
  Pack() = default;
  NTKFAST_INLINE Pack(__m512d x) : v(x) {}
  NTKFAST_INLINE explicit Pack(double x) : v(_mm512_set1_pd(x)) {}
  static NTKFAST_INLINE Pack load(const double* p) { return _mm512_loadu_pd(p); }
  NTKFAST_INLINE void store(double* p) const { _mm512_storeu_pd(p, v); }
  NTKFAST_INLINE double sum() const { return _mm512_reduce_add_pd(v); }
};

#define NTKFAST_PACK(T, R, M, suffix)                                                              \
  NTKFAST_INLINE Pack<T> operator+(Pack<T> a, Pack<T> b) { return _mm512_add_##suffix(a.v, b.v); } \
  NTKFAST_INLINE Pack<T> operator-(Pack<T> a, Pack<T> b) { return _mm512_sub_##suffix(a.v, b.v); } \
  NTKFAST_INLINE Pack<T> operator*(Pack<T> a, Pack<T> b) { return _mm512_mul_##suffix(a.v, b.v); } \
  NTKFAST_INLINE Pack<T> operator/(Pack<T> a, Pack<T> b) { return _mm512_div_##suffix(a.v, b.v); } \
  NTKFAST_INLINE Pack<T> fma_of(Pack<T> a, Pack<T> b, Pack<T> c) {                                 \
    return _mm512_fmadd_##suffix(a.v, b.v, c.v);                                                   \
  }                                                                                                \
  NTKFAST_INLINE Pack<T> max_of(Pack<T> a, Pack<T> b) { return _mm512_max_##suffix(a.v, b.v); }    \
  NTKFAST_INLINE Pack<T> min_of(Pack<T> a, Pack<T> b) { return _mm512_min_##suffix(a.v, b.v); }    \
  NTKFAST_INLINE Pack<T> sqrt_of(Pack<T> a) { return _mm512_sqrt_##suffix(a.v); }                  \
  NTKFAST_INLINE Pack<T> abs_of(Pack<T> a) { return _mm512_abs_##suffix(a.v); }                    \
  NTKFAST_INLINE Pack<T> split_fraction(Pack<T> u, Pack<T>* whole) {                               \
    const Pack<T> fraction =                                                                       \
        _mm512_reduce_##suffix(u.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);                \
    *whole = u - fraction;                                                                         \
    return fraction;                                                                               \
  }                                                                                                \
  NTKFAST_INLINE Pack<T> scale_by_power_of_two(Pack<T> p, Pack<T> n) {                             \
    return _mm512_scalef_##suffix(p.v, n.v);                                                       \
  }                                                                                                \
  NTKFAST_INLINE PackMask<T> operator<(Pack<T> a, Pack<T> b) {                                     \
    return {_mm512_cmp_##suffix##_mask(a.v, b.v, _CMP_LT_OQ)};                                     \
  }                                                                                                \
  NTKFAST_INLINE PackMask<T> operator>(Pack<T> a, Pack<T> b) { return b < a; }                     \
  NTKFAST_INLINE PackMask<T> operator<=(Pack<T> a, Pack<T> b) {                                    \
    return {_mm512_cmp_##suffix##_mask(a.v, b.v, _CMP_LE_OQ)};                                     \
  }                                                                                                \
  NTKFAST_INLINE PackMask<T> operator==(Pack<T> a, Pack<T> b) {                                    \
    return {_mm512_cmp_##suffix##_mask(a.v, b.v, _CMP_EQ_OQ)};                                     \
  }                                                                                                \
  NTKFAST_INLINE PackMask<T> operator|(PackMask<T> a, PackMask<T> b) {                             \
    return {static_cast<M>(a.m | b.m)};                                                            \
  }                                                                                                \
  NTKFAST_INLINE PackMask<T> operator&(PackMask<T> a, PackMask<T> b) {                             \
    return {static_cast<M>(a.m & b.m)};                                                            \
  }                                                                                                \
  NTKFAST_INLINE bool all_of(PackMask<T> a) { return a.m == static_cast<M>(-1); }                  \
  NTKFAST_INLINE Pack<T> select(PackMask<T> m, Pack<T> a, Pack<T> b) {                             \
    return _mm512_mask_blend_##suffix(m.m, b.v, a.v);                                              \
  }
NTKFAST_PACK(float, __m512, __mmask16, ps)
NTKFAST_PACK(double, __m512d, __mmask8, pd)
#undef NTKFAST_PACK

/// One Newton step on the 14-bit estimate: full float precision without the divider.
NTKFAST_INLINE Pack<float> reciprocal(Pack<float> z) {
  const __m512 r = _mm512_rcp14_ps(z.v);
  return _mm512_mul_ps(r, _mm512_fnmadd_ps(z.v, r, _mm512_set1_ps(2.0f)));
}
NTKFAST_INLINE Pack<double> reciprocal(Pack<double> z) { return Pack<double>(1.0) / z; }

/// 4/3 z has the exponent of z's mantissa in [0.75, 1.5).
NTKFAST_INLINE Pack<float> split_exponent(Pack<float> z, Pack<float>* exponent) {
  exponent->v = _mm512_getexp_ps(_mm512_mul_ps(z.v, _mm512_set1_ps(4.0f / 3.0f)));
  return _mm512_getmant_ps(z.v, _MM_MANT_NORM_p75_1p5, _MM_MANT_SIGN_src);
}
NTKFAST_INLINE Pack<double> split_exponent(Pack<double> z, Pack<double>* exponent) {
  const __m512d mantissa = _mm512_getmant_pd(z.v, _MM_MANT_NORM_p75_1p5, _MM_MANT_SIGN_src);
  const __mmask8 halved = _mm512_cmp_pd_mask(mantissa, _mm512_set1_pd(1.0), _CMP_LT_OQ);
  const __m512d e = _mm512_getexp_pd(z.v);
  exponent->v = _mm512_mask_add_pd(e, halved, e, _mm512_set1_pd(1.0));
  return mantissa;
}

#elif defined(__AVX2__) && defined(__FMA__)

template <>
struct PackMask<float> {
  __m256 m;
};
template <>
struct PackMask<double> {
  __m256d m;
};

template <>
struct Pack<float> {
  using scalar = float;
  static constexpr int kLanes = 8;
  __m256 v;
  Pack() = default;
  NTKFAST_INLINE Pack(__m256 x) : v(x) {}
  NTKFAST_INLINE explicit Pack(float x) : v(_mm256_set1_ps(x)) {}
  static NTKFAST_INLINE Pack load(const float* p) { return _mm256_loadu_ps(p); }
  NTKFAST_INLINE void store(float* p) const { _mm256_storeu_ps(p, v); }
  NTKFAST_INLINE float sum() const {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
  }
};
template <>
struct Pack<double> {
  using scalar = double;
  static constexpr int kLanes = 4;
  __m256d v;
  Pack() = default;
  NTKFAST_INLINE Pack(__m256d x) : v(x) {}
  NTKFAST_INLINE explicit Pack(double x) : v(_mm256_set1_pd(x)) {}
  static NTKFAST_INLINE Pack load(const double* p) { return _mm256_loadu_pd(p); }
  NTKFAST_INLINE void store(double* p) const { _mm256_storeu_pd(p, v); }
  NTKFAST_INLINE double sum() const {
    const __m128d s = _mm_add_pd(_mm256_castpd256_pd128(v), _mm256_extractf128_pd(v, 1));
    return _mm_cvtsd_f64(_mm_add_sd(s, _mm_unpackhi_pd(s, s)));
  }
};

#define NTKFAST_PACK(T, suffix, sign)                                                              \
  NTKFAST_INLINE Pack<T> operator+(Pack<T> a, Pack<T> b) { return _mm256_add_##suffix(a.v, b.v); } \
  NTKFAST_INLINE Pack<T> operator-(Pack<T> a, Pack<T> b) { return _mm256_sub_##suffix(a.v, b.v); } \
  NTKFAST_INLINE Pack<T> operator*(Pack<T> a, Pack<T> b) { return _mm256_mul_##suffix(a.v, b.v); } \
  NTKFAST_INLINE Pack<T> operator/(Pack<T> a, Pack<T> b) { return _mm256_div_##suffix(a.v, b.v); } \
  NTKFAST_INLINE Pack<T> fma_of(Pack<T> a, Pack<T> b, Pack<T> c) {                                 \
    return _mm256_fmadd_##suffix(a.v, b.v, c.v);                                                   \
  }                                                                                                \
  NTKFAST_INLINE Pack<T> max_of(Pack<T> a, Pack<T> b) { return _mm256_max_##suffix(a.v, b.v); }    \
  NTKFAST_INLINE Pack<T> min_of(Pack<T> a, Pack<T> b) { return _mm256_min_##suffix(a.v, b.v); }    \
  NTKFAST_INLINE Pack<T> sqrt_of(Pack<T> a) { return _mm256_sqrt_##suffix(a.v); }                  \
  NTKFAST_INLINE Pack<T> abs_of(Pack<T> a) {                                                       \
    return _mm256_andnot_##suffix(_mm256_set1_##suffix(sign), a.v);                                \
  }                                                                                                \
  NTKFAST_INLINE Pack<T> split_fraction(Pack<T> u, Pack<T>* whole) {                               \
    whole->v = _mm256_round_##suffix(u.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);          \
    return u - *whole;                                                                             \
  }                                                                                                \
  NTKFAST_INLINE PackMask<T> operator<(Pack<T> a, Pack<T> b) {                                     \
    return {_mm256_cmp_##suffix(a.v, b.v, _CMP_LT_OQ)};                                            \
  }                                                                                                \
  NTKFAST_INLINE PackMask<T> operator>(Pack<T> a, Pack<T> b) { return b < a; }                     \
  NTKFAST_INLINE PackMask<T> operator<=(Pack<T> a, Pack<T> b) {                                    \
    return {_mm256_cmp_##suffix(a.v, b.v, _CMP_LE_OQ)};                                            \
  }                                                                                                \
  NTKFAST_INLINE PackMask<T> operator==(Pack<T> a, Pack<T> b) {                                    \
    return {_mm256_cmp_##suffix(a.v, b.v, _CMP_EQ_OQ)};                                            \
  }                                                                                                \
  NTKFAST_INLINE PackMask<T> operator|(PackMask<T> a, PackMask<T> b) {                             \
    return {_mm256_or_##suffix(a.m, b.m)};                                                         \
  }                                                                                                \
  NTKFAST_INLINE PackMask<T> operator&(PackMask<T> a, PackMask<T> b) {                             \
    return {_mm256_and_##suffix(a.m, b.m)};                                                        \
  }                                                                                                \
  NTKFAST_INLINE bool all_of(PackMask<T> a) {                                                      \
    return _mm256_movemask_##suffix(a.m) == (1 << Pack<T>::kLanes) - 1;                            \
  }                                                                                                \
  NTKFAST_INLINE Pack<T> select(PackMask<T> m, Pack<T> a, Pack<T> b) {                             \
    return _mm256_blendv_##suffix(b.v, a.v, m.m);                                                  \
  }
NTKFAST_PACK(float, ps, -0.0f)
NTKFAST_PACK(double, pd, -0.0)
#undef NTKFAST_PACK

NTKFAST_INLINE Pack<float> reciprocal(Pack<float> z) { return Pack<float>(1.0f) / z; }
NTKFAST_INLINE Pack<double> reciprocal(Pack<double> z) { return Pack<double>(1.0) / z; }

/// n is clamped where the result underflows; the blend then clears what the clamp made of it.
NTKFAST_INLINE Pack<float> scale_by_power_of_two(Pack<float> p, Pack<float> n) {
  const __m256 lowest = _mm256_set1_ps(-126.0f);
  const __m256i e = _mm256_cvtps_epi32(_mm256_max_ps(n.v, lowest));
  const __m256i bits = _mm256_slli_epi32(_mm256_add_epi32(e, _mm256_set1_epi32(127)), 23);
  const __m256 keep = _mm256_cmp_ps(n.v, lowest, _CMP_GE_OQ);
  return _mm256_and_ps(keep, _mm256_mul_ps(p.v, _mm256_castsi256_ps(bits)));
}
/// Adding 2^52 + bias leaves the integer n + bias in the low bits of the mantissa.
NTKFAST_INLINE Pack<double> scale_by_power_of_two(Pack<double> p, Pack<double> n) {
  const __m256d lowest = _mm256_set1_pd(-1022.0);
  const __m256d biased =
      _mm256_add_pd(_mm256_max_pd(n.v, lowest), _mm256_set1_pd(4503599627370496.0 + 1023.0));
  const __m256i bits = _mm256_slli_epi64(_mm256_castpd_si256(biased), 52);
  const __m256d keep = _mm256_cmp_pd(n.v, lowest, _CMP_GE_OQ);
  return _mm256_and_pd(keep, _mm256_mul_pd(p.v, _mm256_castsi256_pd(bits)));
}

NTKFAST_INLINE Pack<float> split_exponent(Pack<float> z, Pack<float>* exponent) {
  const __m256i bits = _mm256_castps_si256(z.v);
  const __m256i e = _mm256_srai_epi32(_mm256_sub_epi32(bits, _mm256_set1_epi32(0x3f400000)), 23);
  exponent->v = _mm256_cvtepi32_ps(e);
  return _mm256_castsi256_ps(_mm256_sub_epi32(bits, _mm256_slli_epi32(e, 23)));
}
NTKFAST_INLINE Pack<double> split_exponent(Pack<double> z, Pack<double>* exponent) {
  // A logical shift: the bias added beforehand keeps the difference positive.
  const __m256i bits = _mm256_castpd_si256(z.v);
  const __m256i shifted =
      _mm256_add_epi64(_mm256_sub_epi64(bits, _mm256_set1_epi64x(0x3fe8000000000000)),
                       _mm256_set1_epi64x(1023LL << 52));
  const __m256i biased = _mm256_srli_epi64(shifted, 52);
  const __m256i e = _mm256_sub_epi64(biased, _mm256_set1_epi64x(1023));
  const __m256i magic = _mm256_castpd_si256(_mm256_set1_pd(4503599627370496.0));
  exponent->v = _mm256_sub_pd(_mm256_castsi256_pd(_mm256_or_si256(biased, magic)),
                              _mm256_set1_pd(4503599627370496.0 + 1023.0));
  return _mm256_castsi256_pd(_mm256_sub_epi64(bits, _mm256_slli_epi64(e, 52)));
}

#else  // Any processor (SSE2, NEON, ...) through the vector types that GCC and Clang share.

template <class T>
struct VectorOf;
template <>
struct VectorOf<float> {
  typedef float type __attribute__((vector_size(16)));
  typedef int32_t mask __attribute__((vector_size(16)));
};
template <>
struct VectorOf<double> {
  typedef double type __attribute__((vector_size(16)));
  typedef int64_t mask __attribute__((vector_size(16)));
};

template <class T>
struct PackMask {
  typename VectorOf<T>::mask m;
};

template <class T>
struct Pack {
  using scalar = T;
  using Vector = typename VectorOf<T>::type;
  static constexpr int kLanes = 16 / sizeof(T);
  Vector v;
  Pack() = default;
  NTKFAST_INLINE Pack(Vector x) : v(x) {}
  NTKFAST_INLINE explicit Pack(T x) : v(Vector{} + x) {}
  static NTKFAST_INLINE Pack load(const T* p) {
    Vector x;
    __builtin_memcpy(&x, p, sizeof x);
    return x;
  }
  NTKFAST_INLINE void store(T* p) const { __builtin_memcpy(p, &v, sizeof v); }
  NTKFAST_INLINE T sum() const {
    T s = v[0];
    for (int i = 1; i < kLanes; ++i) s += v[i];
    return s;
  }
};

#define NTKFAST_PACK(T)                                                                          \
  NTKFAST_INLINE Pack<T> operator+(Pack<T> a, Pack<T> b) { return a.v + b.v; }                   \
  NTKFAST_INLINE Pack<T> operator-(Pack<T> a, Pack<T> b) { return a.v - b.v; }                   \
  NTKFAST_INLINE Pack<T> operator*(Pack<T> a, Pack<T> b) { return a.v * b.v; }                   \
  NTKFAST_INLINE Pack<T> operator/(Pack<T> a, Pack<T> b) { return a.v / b.v; }                   \
  NTKFAST_INLINE Pack<T> fma_of(Pack<T> a, Pack<T> b, Pack<T> c) { return a.v * b.v + c.v; }     \
  NTKFAST_INLINE PackMask<T> operator<(Pack<T> a, Pack<T> b) { return {a.v < b.v}; }             \
  NTKFAST_INLINE PackMask<T> operator>(Pack<T> a, Pack<T> b) { return {a.v > b.v}; }             \
  NTKFAST_INLINE PackMask<T> operator<=(Pack<T> a, Pack<T> b) { return {a.v <= b.v}; }           \
  NTKFAST_INLINE PackMask<T> operator==(Pack<T> a, Pack<T> b) { return {a.v == b.v}; }           \
  NTKFAST_INLINE PackMask<T> operator|(PackMask<T> a, PackMask<T> b) { return {a.m | b.m}; }     \
  NTKFAST_INLINE PackMask<T> operator&(PackMask<T> a, PackMask<T> b) { return {a.m & b.m}; }     \
  NTKFAST_INLINE Pack<T> select(PackMask<T> m, Pack<T> a, Pack<T> b) { return m.m ? a.v : b.v; } \
  NTKFAST_INLINE Pack<T> max_of(Pack<T> a, Pack<T> b) { return a.v > b.v ? a.v : b.v; }          \
  NTKFAST_INLINE Pack<T> min_of(Pack<T> a, Pack<T> b) { return a.v < b.v ? a.v : b.v; }          \
  NTKFAST_INLINE Pack<T> abs_of(Pack<T> a) { return max_of(a, Pack<T>(-a.v)); }                  \
  NTKFAST_INLINE Pack<T> reciprocal(Pack<T> a) { return T(1) / a.v; }                            \
  NTKFAST_INLINE Pack<T> sqrt_of(Pack<T> a) {                                                    \
    for (int i = 0; i < Pack<T>::kLanes; ++i) a.v[i] = sqrt_of(a.v[i]);                          \
    return a;                                                                                    \
  }                                                                                              \
  NTKFAST_INLINE bool all_of(PackMask<T> a) {                                                    \
    bool all = true;                                                                             \
    for (int i = 0; i < Pack<T>::kLanes; ++i) all = all && a.m[i] != 0;                          \
    return all;                                                                                  \
  }
NTKFAST_PACK(float)
NTKFAST_PACK(double)
#undef NTKFAST_PACK

/// Adding and taking away 1.5 * 2^23 (2^52) rounds to an integer. Larger numbers are clamped: exp2
/// has underflowed long before.
template <class T>
NTKFAST_INLINE Pack<T> split_fraction_by_rounding(Pack<T> u, T magic, T lowest, Pack<T>* whole) {
  u = max_of(u, Pack<T>(lowest));
  *whole = (u + Pack<T>(magic)) - Pack<T>(magic);
  return u - *whole;
}
NTKFAST_INLINE Pack<float> split_fraction(Pack<float> u, Pack<float>* whole) {
  return split_fraction_by_rounding(u, 12582912.0f, -4e6f, whole);
}
NTKFAST_INLINE Pack<double> split_fraction(Pack<double> u, Pack<double>* whole) {
  return split_fraction_by_rounding(u, 6755399441055744.0, -4e15, whole);
}

/// 2^n from the bits of n + 1.5 * 2^23 + bias; zero where the result underflows, whatever p is
/// there.
NTKFAST_INLINE Pack<float> scale_by_power_of_two(Pack<float> p, Pack<float> n) {
  const Pack<float> lowest(-126.0f);
  const Pack<float> biased = max_of(n, lowest) + Pack<float>(12582912.0f + 127.0f);
  const auto bits = reinterpret_cast<VectorOf<float>::mask>(biased.v) << 23;
  const Pack<float> scale = reinterpret_cast<VectorOf<float>::type>(bits);
  return select(n < lowest, Pack<float>(0.0f), p * scale);
}
NTKFAST_INLINE Pack<double> scale_by_power_of_two(Pack<double> p, Pack<double> n) {
  const Pack<double> lowest(-1022.0);
  const Pack<double> biased = max_of(n, lowest) + Pack<double>(6755399441055744.0 + 1023.0);
  const auto bits = reinterpret_cast<VectorOf<double>::mask>(biased.v) << 52;
  const Pack<double> scale = reinterpret_cast<VectorOf<double>::type>(bits);
  return select(n < lowest, Pack<double>(0.0), p * scale);
}

NTKFAST_INLINE Pack<float> split_exponent(Pack<float> z, Pack<float>* exponent) {
  const auto bits = reinterpret_cast<VectorOf<float>::mask>(z.v);
  const auto e = (bits - 0x3f400000) >> 23;
  exponent->v = __builtin_convertvector(e, VectorOf<float>::type);
  return Pack<float>(reinterpret_cast<VectorOf<float>::type>(bits - (e << 23)));
}
NTKFAST_INLINE Pack<double> split_exponent(Pack<double> z, Pack<double>* exponent) {
  const auto bits = reinterpret_cast<VectorOf<double>::mask>(z.v);
  const auto e = (bits - 0x3fe8000000000000) >> 52;
  exponent->v = __builtin_convertvector(e, VectorOf<double>::type);
  return Pack<double>(reinterpret_cast<VectorOf<double>::type>(bits - (e << 52)));
}

#endif

template <class T>
NTKFAST_INLINE Pack<T> operator-(Pack<T> a) {
  return Pack<T>(T(0)) - a;
}

}  // namespace
}  // namespace ntkfast
