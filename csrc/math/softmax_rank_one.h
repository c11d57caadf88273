// Softmax after a rank-one change of the logits, for every label in O(1) each.
//
// Labelling candidate c with y changes the logits of an evaluation point x (in units of log2,
// divided by the temperature) from F_j to
//     l_j + A [j = y],     l_j = F_j - A B_j,     A = s a(x, c) log2(e) / T,
// so one set of k exponentials serves all k labels: take y out of the sums and put it back at l_y +
// A (docs/method.md, section 4; f+ of eq. 12 of Mohamadi et al. 2022).
#pragma once

#include "math/exp_log.h"

namespace ntkfast {
namespace {

/// What a criterion sees of one hypothetical label; `reference` is a common offset of all logits.
/// With u_j = l+_j - reference:
///     Z = sum_j 2^u_j,   N = sum_j u_j 2^u_j,   squares = sum_j 4^u_j,   top = max_j 2^u_j,
///     target = sum_j q_j u_j, which only criteria with targets are given.
/// Everything here is inlined, so that a sum costs nothing where a criterion does not read it.
template <class V>
struct LabelSums {
  V Z, N, squares, top, reference, target;
};

/// Logits u and weights w of one point, for a further pass over the labels; `again` computes one
/// anew and is not called where they were kept. K > 0: in registers. K = 0: in the caller's scratch
/// (2 k values).
template <class Memory>
struct KeptLabels {
  Memory w, u;
  template <class V>
  NTKFAST_HD NTKFAST_INLINE void keep_logit(int j, V value) {
    u[j] = value;
  }
  template <class V>
  NTKFAST_HD NTKFAST_INLINE void keep_weight(int j, V value) {
    w[j] = value;
  }
  template <class Again>
  NTKFAST_HD NTKFAST_INLINE auto logit(int j, const Again&) const {
    return u[j];
  }
  template <class Again>
  NTKFAST_HD NTKFAST_INLINE auto weight(int j, const Again&) const {
    return w[j];
  }
};
template <int K, class V>
struct LabelScratch : KeptLabels<V[K]> {
  NTKFAST_HD NTKFAST_INLINE LabelScratch(V*, int) {}
};
template <class V>
struct LabelScratch<0, V> : KeptLabels<V*> {
  NTKFAST_HD NTKFAST_INLINE LabelScratch(V* scratch, int k)
      : KeptLabels<V*>{scratch, scratch + k} {}
};
/// K for any number of classes of which nothing is kept: a GPU thread's registers hold a few
/// classes, not a hundred, and an array indexed by a loop would live in memory.
constexpr int kAnyClasses = -1;
template <class V>
struct LabelScratch<kAnyClasses, V> {
  NTKFAST_HD NTKFAST_INLINE LabelScratch(V*, int) {}
  NTKFAST_HD NTKFAST_INLINE void keep_logit(int, V) {}
  NTKFAST_HD NTKFAST_INLINE void keep_weight(int, V) {}
  template <class Again>
  NTKFAST_HD NTKFAST_INLINE V logit(int, const Again& again) const {
    return again();
  }
  template <class Again>
  NTKFAST_HD NTKFAST_INLINE V weight(int, const Again& again) const {
    return again();
  }
};

/// l_j = F_j - A B_j
template <class V, class Point, class Candidate>
struct Logits {
  V A;
  const Point& F;
  const Candidate& B;
  NTKFAST_HD NTKFAST_INLINE V operator()(int j) const { return fma_of(-A, V(B(j)), F(j)); }
};

/// Bounds that keep every intermediate finite. A logit this far below another has probability zero,
/// and a step A this large is decided.
template <class T>
NTKFAST_HD constexpr T logit_floor() {
  return static_cast<T>(sizeof(T) == sizeof(float) ? -1e30 : -1e200);
}
template <class T>
NTKFAST_HD constexpr T step_limit() {
  return static_cast<T>(sizeof(T) == sizeof(float) ? 1e15 : 1e100);
}

/// The largest and second largest of a stream of values, and where the largest was seen first.
template <class V>
struct TopTwo {
  V first, second, where, where_second;
  NTKFAST_HD NTKFAST_INLINE explicit TopTwo(V value)
      : first(value), second(lowest()), where(scalar_of<V>(0)), where_second(scalar_of<V>(0)) {}
  NTKFAST_HD NTKFAST_INLINE void add(V value, V index) {
    const auto above_first = value > first;
    const auto above_second = value > second;
    second = select(above_first, first, select(above_second, value, second));
    where_second = select(above_first, where, select(above_second, index, where_second));
    where = select(above_first, index, where);
    first = select(above_first, value, first);
  }
  static NTKFAST_HD NTKFAST_INLINE V lowest() {
    return V(scalar_of<V>(1e8) * logit_floor<scalar_of<V>>());
  }
};

/// The largest of all weights but one, for each of them in order. K > 0: from the largest before
/// and after it, three maxima a label and no comparison with where the largest is.
template <int K, class V>
struct LargestOthers {
  V from[K];  // the weights, then the largest from here on
  V before;
  NTKFAST_HD NTKFAST_INLINE void add(int j, V w) { from[j] = w; }
  NTKFAST_HD NTKFAST_INLINE void close() {
    NTKFAST_UNROLL_CLASSES
    for (int j = K - 2; j >= 0; --j) from[j] = max_of(from[j], from[j + 1]);
    before = V(scalar_of<V>(0));  // weights are positive
  }
  NTKFAST_HD NTKFAST_INLINE V without(int y, V w) {
    const V others = y + 1 < K ? max_of(before, from[y + 1 < K ? y + 1 : 0]) : before;
    before = max_of(before, w);
    return others;
  }
};
/// K <= 0: from the largest two; of several largest the second is one.
template <class V>
struct LargestTwo {
  V first{scalar_of<V>(0)}, second{scalar_of<V>(0)};
  NTKFAST_HD NTKFAST_INLINE void add(int, V w) {
    second = max_of(second, min_of(first, w));
    first = max_of(first, w);
  }
  NTKFAST_HD NTKFAST_INLINE void close() {}
  NTKFAST_HD NTKFAST_INLINE V without(int, V w) { return select(w == first, second, first); }
};
template <class V>
struct LargestOthers<0, V> : LargestTwo<V> {};
template <class V>
struct LargestOthers<kAnyClasses, V> : LargestTwo<V> {};

/// Of any number of classes, on a GPU. Two need fewer registers and wait more.
#if !defined(NTKFAST_LABELS_AT_ONCE)
#define NTKFAST_LABELS_AT_ONCE 4
#endif
constexpr int kLabelsAtOnce = NTKFAST_LABELS_AT_ONCE;

/// |A| (1 + max |B|) up to which plain sums with reference 0 lose at most four bits.
template <class T>
NTKFAST_HD constexpr T moderate_step() {
  return T(4);
}
/// |A| up to which sums relative to the unchanged largest logit do, once that logit is kept apart.
template <class T>
NTKFAST_HD constexpr T large_step() {
  return T(16);
}
/// Sums relative to the unchanged largest logit, which the caller has shifted to 0: valid for
/// moderate |A|. This is where nearly all pairs of a pool are.
template <int K, class V, class Point, class Candidate, class Body>
NTKFAST_HD NTKFAST_INLINE void moderate_labels(int k, V A, const Point& F, const Candidate& B,
                                               LabelScratch<K, V>& scratch, Body& body) {
  using T = scalar_of<V>;
  const int count = K > 0 ? K : k;
  const Logits<V, Point, Candidate> logit{A, F, B};
  V S(T(0)), N0(T(0)), Q0(T(0));
  LargestOthers<K, V> others;
  NTKFAST_UNROLL_HOT_CLASSES
  for (int j = 0; j < count; ++j) {
    const V u = logit(j);
    const V w = exp2_of(u);
    S = S + w;
    N0 = fma_of(u, w, N0);
    Q0 = fma_of(w, w, Q0);
    others.add(j, w);
    scratch.keep_logit(j, u);
    scratch.keep_weight(j, w);
  }
  others.close();
  const V E = exp2_of(A);
  const V growth = E - V(T(1));
  const V square_growth = fma_of(E, E, V(T(-1)));
  const V A_E = A * E;
  NTKFAST_UNROLL_HOT_CLASSES
  for (int y = 0; y < count; ++y) {
    const V u = scratch.logit(y, [&] { return logit(y); });
    const V w = scratch.weight(y, [&] { return exp2_of(u); });
    const V Z = fma_of(w, growth, S);
    const V N = fma_of(w, fma_of(u, growth, A_E), N0);
    const V squares = fma_of(w * w, square_growth, Q0);
    const V largest = max_of(others.without(y, w), w * E);
    body(y, LabelSums<V>{Z, N, squares, largest, V(T(0)), V(T(0))});
  }
}

/// The same for large |A|, where taking the largest weight out of a sum would cancel: the largest
/// is kept apart from the sum of all others, relative to which every other weight is small.
template <int K, class V, class Point, class Candidate, class Body>
NTKFAST_HD NTKFAST_INLINE void large_labels(int k, V A, const Point& F, const Candidate& B,
                                            LabelScratch<K, V>& scratch, Body& body) {
  using T = scalar_of<V>;
  const int count = K > 0 ? K : k;
  const Logits<V, Point, Candidate> logit{A, F, B};
  const V zero(T(0)), one(T(1));
  V largest = TopTwo<V>::lowest(), where = zero;
  NTKFAST_UNROLL_CLASSES
  for (int j = 0; j < count; ++j) {
    const V u = logit(j);
    where = select(u > largest, V(T(j)), where);
    largest = max_of(largest, u);
    scratch.keep_logit(j, u);
  }
  V others = zero, N0 = zero, Q0 = zero, second = zero;
  NTKFAST_UNROLL_CLASSES
  for (int j = 0; j < count; ++j) {
    const V u = scratch.logit(j, [&] { return logit(j); }) - largest;
    const V w = exp2_of(u);
    const V other = select(where == V(T(j)), zero, w);
    others = others + other;
    Q0 = fma_of(other, other, Q0);
    second = max_of(second, other);
    N0 = fma_of(u, w, N0);  // the largest adds nothing: its u is zero
    scratch.keep_logit(j, u);
    scratch.keep_weight(j, w);
  }
  const V E = exp2_of(A);
  const V A_E = A * E;
  NTKFAST_UNROLL_CLASSES
  for (int y = 0; y < count; ++y) {
    const V u = scratch.logit(y, [&] { return logit(y) - largest; });
    const V w = scratch.weight(y, [&] { return exp2_of(u); });
    const auto is_largest = where == V(T(y));
    const V R = select(is_largest, others, one + (others - w));
    const V Z = fma_of(w, E, R);
    const V N = fma_of(w, fma_of(u, E, A_E), fma_of(-u, w, N0));
    const V raised = w * E;
    const V squares = fma_of(raised, raised, select(is_largest, Q0, one + fma_of(-w, w, Q0)));
    const V top = max_of(select(is_largest, second, one), raised);
    body(y, LabelSums<V>{Z, N, squares, top, largest, zero});
  }
}

/// The same for any A. The sums without y are kept relative to b = max_{j != y} l_j, never obtained
/// by taking a dominating term out of a sum, and the new maximum g = max(b, l_y + A) is the
/// reference, so that every exponential is at most one and the largest is exactly one.
template <int K, class V, class Point, class Candidate, class Body>
NTKFAST_HD NTKFAST_INLINE void any_labels(int k, V A, const Point& F, const Candidate& B,
                                          LabelScratch<K, V>& scratch, Body& body) {
  using T = scalar_of<V>;
  const int count = K > 0 ? K : k;
  const Logits<V, Point, Candidate> logit{A, F, B};
  const V zero(T(0)), one(T(1));
  TopTwo<V> top(TopTwo<V>::lowest());
  NTKFAST_KEEP_LOOP
  for (int j = 0; j < count; ++j) {
    const V u = logit(j);
    top.add(u, V(T(j)));
    scratch.keep_logit(j, u);
  }
  // All but the largest, relative to the second largest; then the same seen from the largest.
  const auto relative = [&](int j, V t) {
    return select(top.where == V(T(j)), zero, exp2_of(min_of(t, zero)));
  };
  V S2 = zero, N2 = zero, Q2 = zero;
  NTKFAST_KEEP_LOOP
  for (int j = 0; j < count; ++j) {
    const V t = scratch.logit(j, [&] { return logit(j); }) - top.second;
    const V w = relative(j, t);
    S2 = S2 + w;
    N2 = fma_of(t, w, N2);
    Q2 = fma_of(w, w, Q2);
    scratch.keep_weight(j, w);
  }
  const V gap = top.second - top.first;
  const V shrink = exp2_of(gap);
  const V N1 = shrink * fma_of(gap, S2, N2);
  NTKFAST_KEEP_LOOP
  for (int y = 0; y < count; ++y) {
    const auto is_largest = top.where == V(T(y));
    const V u = scratch.logit(y, [&] { return logit(y); });
    const V w = scratch.weight(y, [&] { return relative(y, u - top.second); });
    const V b = select(is_largest, top.second, top.first);
    const V R = select(is_largest, S2, fma_of(S2 - w, shrink, one));
    const V N = select(is_largest, N2, fma_of(top.first - u, w * shrink, N1));
    const V Q = select(is_largest, Q2, fma_of(fma_of(-w, w, Q2) * shrink, shrink, one));
    const V raised = u + A;
    const V rise = raised - b;
    const V h = max_of(rise, zero);
    const V small = exp2_of(-abs_of(rise));
    const auto rises = rise > zero;
    const V old = select(rises, small, one);  // 2^(b - g)
    const V e = select(rises, one, small);    // 2^(l_y + A - g)
    const V Z = fma_of(R, old, e);
    const V squares = fma_of(Q * old, old, e * e);
    body(y, LabelSums<V>{Z, fma_of(fma_of(-h, R, N), old, e * (rise - h)), squares, one,
                         max_of(raised, b), zero});
  }
}

/// Calls body(y, LabelSums) for every label y of one (point, candidate) pair.
/// F(j): logits of the point with their maximum shifted to 0; B(j): the candidate's baseline;
/// bound: 1 + max_j |B(j)|.
template <int K, class V, class Point, class Candidate, class Body>
NTKFAST_HD NTKFAST_INLINE void for_each_label(int k, V A, V bound, const Point& F,
                                              const Candidate& B, V* scratch_memory, Body& body) {
  using T = scalar_of<V>;
  LabelScratch<K, V> scratch(scratch_memory, k);
  if (all_of(abs_of(A) * bound <= V(moderate_step<T>()))) {
    moderate_labels<K>(k, A, F, B, scratch, body);
  } else if (all_of(abs_of(A) <= V(large_step<T>()))) {
    large_labels<K>(k, A, F, B, scratch, body);
  } else {
    any_labels<K>(k, A, F, B, scratch, body);
  }
}

}  // namespace
}  // namespace ntkfast
