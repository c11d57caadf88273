// A few numbers in the registers of one GPU thread, with the operations that csrc/math needs
// (scalar.h lists them).
//
// Two neighbouring evaluation points share what is loaded of the candidate, and the fragments of
// the tensor cores come in such pairs. Single precision uses the special-function unit where its
// error (about 2^-22) is small against what a criterion promises; the emulation on the CPU computes
// the same functions in full precision.
#pragma once

#include "cuda/context.cuh"
#include "math/scalar_criteria.h"

namespace ntkfast {
namespace {

template <class T, int N>
struct alignas(N * sizeof(T) < 16 ? N * sizeof(T) : 16) Lanes {  // at most what one access moves
  using scalar = T;
  static constexpr int kLanes = N;
  T v[N];
  Lanes() = default;
  NTKFAST_HD NTKFAST_INLINE explicit Lanes(T x) {
    NTKFAST_UNROLL_DEVICE
    for (int i = 0; i < N; ++i) v[i] = x;
  }
};
template <int N>
struct LaneMask {
  bool v[N];
};

// Only the device pass of nvcc knows the instructions.
NTKFAST_HD NTKFAST_INLINE float fast_sqrt(float x) {
#if defined(__CUDA_ARCH__)
  asm("sqrt.approx.ftz.f32 %0, %1;" : "=f"(x) : "f"(x));
  return x;
#else
  return sqrtf(x);
#endif
}
NTKFAST_HD NTKFAST_INLINE double fast_sqrt(double x) { return sqrt(x); }

#define NTKFAST_EACH_LANE(expression) \
  NTKFAST_UNROLL_DEVICE               \
  for (int i = 0; i < N; ++i) expression

#define NTKFAST_LANES       \
  template <class T, int N> \
  NTKFAST_HD NTKFAST_INLINE
#define NTKFAST_BINARY(name, expression)                         \
  NTKFAST_LANES Lanes<T, N> name(Lanes<T, N> a, Lanes<T, N> b) { \
    Lanes<T, N> r;                                               \
    NTKFAST_EACH_LANE(r.v[i] = expression);                      \
    return r;                                                    \
  }
NTKFAST_BINARY(operator+, a.v[i] + b.v[i])
NTKFAST_BINARY(operator-, a.v[i] - b.v[i])
NTKFAST_BINARY(operator*, a.v[i] * b.v[i])
NTKFAST_BINARY(operator/, a.v[i] / b.v[i])
NTKFAST_BINARY(max_of, max_of(a.v[i], b.v[i]))
NTKFAST_BINARY(min_of, min_of(a.v[i], b.v[i]))
NTKFAST_BINARY(scale_by_power_of_two, scale_by_power_of_two(a.v[i], b.v[i]))
#undef NTKFAST_BINARY
#define NTKFAST_UNARY(name, expression)           \
  NTKFAST_LANES Lanes<T, N> name(Lanes<T, N> a) { \
    Lanes<T, N> r;                                \
    NTKFAST_EACH_LANE(r.v[i] = expression);       \
    return r;                                     \
  }
NTKFAST_UNARY(operator-, -a.v[i])
NTKFAST_UNARY(abs_of, abs_of(a.v[i]))
NTKFAST_UNARY(sqrt_of, fast_sqrt(a.v[i]))
NTKFAST_UNARY(log2_one_minus, log2_one_minus(a.v[i]))
#undef NTKFAST_UNARY
#define NTKFAST_COMPARE(op)                                             \
  NTKFAST_LANES LaneMask<N> operator op(Lanes<T, N> a, Lanes<T, N> b) { \
    LaneMask<N> r;                                                      \
    NTKFAST_EACH_LANE(r.v[i] = a.v[i] op b.v[i]);                       \
    return r;                                                           \
  }
NTKFAST_COMPARE(<)
NTKFAST_COMPARE(>)
NTKFAST_COMPARE(<=)
NTKFAST_COMPARE(==)
#undef NTKFAST_COMPARE
template <int N>
NTKFAST_HD NTKFAST_INLINE LaneMask<N> operator|(LaneMask<N> a, LaneMask<N> b) {
  LaneMask<N> r;
  NTKFAST_EACH_LANE(r.v[i] = a.v[i] || b.v[i]);
  return r;
}
template <int N>
NTKFAST_HD NTKFAST_INLINE LaneMask<N> operator&(LaneMask<N> a, LaneMask<N> b) {
  LaneMask<N> r;
  NTKFAST_EACH_LANE(r.v[i] = a.v[i] && b.v[i]);
  return r;
}
template <int N>
NTKFAST_HD NTKFAST_INLINE bool all_of(LaneMask<N> a) {
  bool all = true;
  NTKFAST_EACH_LANE(all = all && a.v[i]);
  return all;
}
NTKFAST_LANES Lanes<T, N> select(LaneMask<N> mask, Lanes<T, N> a, Lanes<T, N> b) {
  Lanes<T, N> r;
  NTKFAST_EACH_LANE(r.v[i] = mask.v[i] ? a.v[i] : b.v[i]);
  return r;
}
NTKFAST_LANES Lanes<T, N> fma_of(Lanes<T, N> a, Lanes<T, N> b, Lanes<T, N> c) {
  Lanes<T, N> r;
  NTKFAST_EACH_LANE(r.v[i] = fma_of(a.v[i], b.v[i], c.v[i]));
  return r;
}
NTKFAST_LANES Lanes<T, N> split_exponent(Lanes<T, N> z, Lanes<T, N>* exponent) {
  Lanes<T, N> r;
  NTKFAST_EACH_LANE(r.v[i] = split_exponent(z.v[i], &exponent->v[i]));
  return r;
}

NTKFAST_LANES Lanes<T, N> split_fraction(Lanes<T, N> u, Lanes<T, N>* whole) {
  Lanes<T, N> r;
  NTKFAST_EACH_LANE(r.v[i] = split_fraction(u.v[i], &whole->v[i]));
  return r;
}

NTKFAST_HD NTKFAST_INLINE float fast_exp2(float x) {
#if defined(__CUDA_ARCH__)
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(x) : "f"(x));
  return x;
#else
  return exp2f(x);
#endif
}
NTKFAST_HD NTKFAST_INLINE float fast_log2(float x) {
#if defined(__CUDA_ARCH__)
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(x) : "f"(x));
  return x;
#else
  return log2f(x);
#endif
}
NTKFAST_HD NTKFAST_INLINE float fast_reciprocal(float x) {
#if defined(__CUDA_ARCH__)
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(x) : "f"(x));
  return x;
#else
  return 1.0f / x;
#endif
}
#define NTKFAST_FAST(name, function)                                  \
  template <int N>                                                    \
  NTKFAST_HD NTKFAST_INLINE Lanes<float, N> name(Lanes<float, N> a) { \
    Lanes<float, N> r;                                                \
    NTKFAST_EACH_LANE(r.v[i] = function(a.v[i]));                     \
    return r;                                                         \
  }
NTKFAST_FAST(exp2_of, fast_exp2)
NTKFAST_FAST(log2_of, fast_log2)
#undef NTKFAST_FAST
/// Of numbers whose products, two by two or four by four, are normal ones: the special-function
/// unit, which binds the criteria of the softmax, is asked once for them. The sums Z of k weights
/// are between 2^-16 and 2^16 + 16 k.
template <int N>
NTKFAST_HD NTKFAST_INLINE Lanes<float, N> reciprocal(Lanes<float, N> a) {
  static_assert(N % 2 == 0, "numbers come in pairs");
  Lanes<float, N> r;
  const auto split = [&](int i, float both) {  // the reciprocal of a product of two
    r.v[i] = both * a.v[i + 1];
    r.v[i + 1] = both * a.v[i];
  };
  if constexpr (N % 4 == 0) {
    NTKFAST_UNROLL_DEVICE
    for (int i = 0; i < N; i += 4) {
      const float first = a.v[i] * a.v[i + 1], second = a.v[i + 2] * a.v[i + 3];
      const float all = fast_reciprocal(first * second);
      split(i, all * second);
      split(i + 2, all * first);
    }
  } else {
    NTKFAST_UNROLL_DEVICE
    for (int i = 0; i < N; i += 2) split(i, fast_reciprocal(a.v[i] * a.v[i + 1]));
  }
  return r;
}
template <int N>
NTKFAST_HD NTKFAST_INLINE Lanes<double, N> reciprocal(Lanes<double, N> a) {
  return Lanes<double, N>(1.0) / a;
}
#undef NTKFAST_LANES
#undef NTKFAST_EACH_LANE

template <class T>
using Pair = Lanes<T, 2>;

/// Two neighbouring numbers at an even place, in one access.
template <class T>
NTKFAST_DEVICE Pair<T> load_pair(const T* p) {
  return *reinterpret_cast<const Pair<T>*>(p);
}

/// Four neighbouring numbers at a place that four divides, likewise.
template <class T>
NTKFAST_DEVICE Lanes<T, 4> load_four(const T* p) {
  return *reinterpret_cast<const Lanes<T, 4>*>(p);
}

/// Loops that keep nothing, for what is rare.
template <class T, int N, class Point, class Candidate, class Body>
NTKFAST_HD NTKFAST_INLINE void for_each_label_of_large_step(int k, Lanes<T, N> A, const Point& F,
                                                            const Candidate& B, Body& body) {
  using V = Lanes<T, N>;
  LabelScratch<kAnyClasses, V> nothing(nullptr, k);
  if (all_of(abs_of(A) <= V(large_step<T>()))) {
    large_labels<kAnyClasses>(k, A, F, B, nothing, body);
  } else {
    any_labels<kAnyClasses>(k, A, F, B, nothing, body);
  }
}
/// What the criteria call on a GPU thread: the unrolled registers of softmax_rank_one.h for a few
/// classes and moderate steps, loops that keep nothing otherwise.
template <int K, class T, int N, class Point, class Candidate, class Body>
NTKFAST_HD NTKFAST_INLINE void for_each_label(int k, Lanes<T, N> A, Lanes<T, N> bound,
                                              const Point& F, const Candidate& B, Lanes<T, N>*,
                                              Body& body) {
  using V = Lanes<T, N>;
  if (all_of(abs_of(A) * bound <= V(moderate_step<T>()))) {
    LabelScratch<K, V> scratch(nullptr, k);
    moderate_labels<K>(k, A, F, B, scratch, body);
  } else {
    for_each_label_of_large_step(k, A, F, B, body);
  }
}

}  // namespace
}  // namespace ntkfast
