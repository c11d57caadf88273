// The criteria for a matrix-valued kernel, whose covariance S(x, c) is a k x k block
// (docs/method.md, section 6).
//
// With A = S(c, c) + lam_c I = L L^T, a candidate asks for some rows z_i of k numbers, and for
// every point x the kernel forms
//     l_i = start(x) + S(x, c) z_i,                       k numbers, O(k^2) for each row.
// Label criteria have a row for every label y of P(y|c) > 0, z_y = A^-1 r(c, y), so that l_y is f+
// itself, and sum P(y|c) times a function of it. Variance criteria have the rows of L^-1. The 1/k
// of those makes a kernel K (x) I_k worth what the scalar kernel K is.
//
// What drivers call of a criterion:
//     kStarts                 whether start(x) is kept in the first k planes of a point, or zero
//     point_size(k), prepare_point(...)   what it keeps of an evaluation point x
//     prepare_candidate(...)  the rows, their weights, two further numbers
//     row_value(k, l, x)      what a row is worth; the summand is the weighted sum of it
// or, instead of the last, kRowwise = false and pair_value(...) from all rows of a pair at once.
// Block<Criterion> is chosen by the form of the criterion.
// prepare_* run once per point in double; the values run for every pair in the compute type.
#pragma once

#include "math/scalar_criteria.h"

namespace ntkfast {
namespace {

/// One candidate: F, f, P as for a scalar kernel, and the block S(c, c), (k, k) row by row; only
/// its lower triangle is read.
struct BlockCandidate {
  CandidateInputs inputs;  // its scalar variance is not used
  const double* variance;
};

/// One evaluation point; the block S(x, x) may be null where the criterion does not read it.
struct BlockPoint {
  PointInputs inputs;
  const double* variance;
};

/// What a candidate asks for. Memory of the caller: rows (k, k), weights (k), further (2), and work
/// (k (2 k + 1)) in double.
template <class T>
struct CandidateRows {
  T* rows;
  T* weights;
  T* further;
  double* work;
};

// --- Small dense algebra, row by row in double ---

/// Lower factor L of block + noise I = L L^T; false when that is not positive definite.
NTKFAST_HD_CALL bool factor_block(int k, const double* block, double noise, double* L) {
  for (int i = 0; i < k; ++i)
    for (int j = 0; j <= i; ++j) {
      double sum = block[i * k + j] + (i == j ? noise : 0.0);
      for (int m = 0; m < j; ++m) sum -= L[i * k + m] * L[j * k + m];
      if (i == j && !(sum > 0)) return false;
      L[i * k + j] = i == j ? sqrt(sum) : sum / L[j * k + j];
    }
  return true;
}

/// X <- L^-1 X for X (k, count).
NTKFAST_HD inline void solve_lower(int k, const double* L, int count, double* X) {
  for (int i = 0; i < k; ++i) {
    double* row = X + i * count;
    for (int m = 0; m < i; ++m) {
      const double factor = L[i * k + m];
      const double* other = X + m * count;
      for (int j = 0; j < count; ++j) row[j] -= factor * other[j];
    }
    for (int j = 0; j < count; ++j) row[j] /= L[i * k + i];
  }
}

/// X <- L^-T X for X (k, count).
NTKFAST_HD inline void solve_lower_transposed(int k, const double* L, int count, double* X) {
  for (int i = k - 1; i >= 0; --i) {
    double* row = X + i * count;
    for (int j = 0; j < count; ++j) row[j] /= L[i * k + i];
    for (int m = 0; m < i; ++m) {
      const double factor = L[i * k + m];
      double* other = X + m * count;
      for (int j = 0; j < count; ++j) other[j] -= factor * row[j];
    }
  }
}

/// X <- L^-1 for X (k, k).
NTKFAST_HD_CALL void invert_lower(int k, const double* L, double* X) {
  for (int i = 0; i < k; ++i)
    for (int j = 0; j < k; ++j) X[i * k + j] = i == j ? 1.0 : 0.0;
  solve_lower(k, L, k, X);
}

/// Noise that leaves a label without any information.
NTKFAST_HD NTKFAST_INLINE bool tells_nothing(double noise) { return !(noise < 1e300); }

// --- Label criteria ---

template <class Criterion, class Form = typename Criterion::Form>
struct Block;

/// Calls visitor(Block<C>{}) with the criterion C of this index. Coverage is of scalar kernels: for
/// it nothing is called.
template <class Visitor>
NTKFAST_INLINE void visit_block(int index, Visitor&& visitor) {
  visit_criterion(index, [&](auto criterion) {
    if constexpr (!has<decltype(criterion)>(kReadsCovered)) {
      visitor(Block<decltype(criterion)>{});
    }
  });
}

/// Rows z_y = unit s A^-1 (e_y - B) of the labels with P(y) > 0, weighted `weight` P(y);
/// `most_likely`: of the label argmax f(c) alone. Without information one row of zeros stands for
/// all. Returns their number, -1 where A is not positive definite.
template <class T>
NTKFAST_HD_CALL int label_rows(const Settings& settings, const BlockCandidate& c, double unit,
                               double weight, bool most_likely, CandidateRows<T> out) {
  const int k = settings.classes, likely = argmax(c.inputs.f, k);
  const auto P = [&](int y) { return !most_likely ? c.inputs.P[y] : y == likely ? 1.0 : 0.0; };
  double *L = out.work, *X = L + k * k, *expected = X + k * k;
  if (tells_nothing(c.inputs.noise)) {
    double total = 0;
    for (int y = 0; y < k; ++y) total += P(y);
    for (int j = 0; j < k; ++j) out.rows[j] = T(0);
    out.weights[0] = static_cast<T>(weight * total);
    return 1;
  }
  if (!factor_block(k, c.variance, c.inputs.noise, L)) return -1;
  const Baseline B(settings, c.inputs);
  for (int j = 0; j < k; ++j) expected[j] = B(j);
  int count = 0;
  for (int y = 0; y < k; ++y) count += P(y) != 0;
  for (int y = 0, i = 0; y < k; ++y) {
    if (P(y) == 0) continue;
    for (int j = 0; j < k; ++j) X[j * count + i] = (j == y ? 1.0 : 0.0) - expected[j];
    out.weights[i++] = static_cast<T>(weight * P(y));
  }
  solve_lower(k, L, count, X);
  solve_lower_transposed(k, L, count, X);
  for (int i = 0; i < count; ++i)
    for (int j = 0; j < k; ++j)
      out.rows[i * k + j] = bounded<T>(settings.label_scale * unit * X[j * count + i]);
  return count;
}

template <class Criterion>
struct Block<Criterion, OfSoftmax> : Criterion {
  static constexpr bool kStarts = true, kRowwise = true,
                        kHasTargets = has<Criterion>(kReadsTargets);
  static NTKFAST_HD int point_size(int k) { return kHasTargets ? 2 * k : k; }
  template <class T>
  static NTKFAST_HD bool prepare_point(const Settings& s, const BlockPoint& x, double*,
                                       Prepared<T> out) {
    prepare_softmax<Criterion>(s, x.inputs, out);
    return true;
  }
  template <class T>
  static NTKFAST_HD int prepare_candidate(const Settings& s, const BlockCandidate& c,
                                          CandidateRows<T> out) {
    return label_rows(s, c, kLog2E / s.temperature, Criterion::kScale, false, out);
  }
  template <class V, class Row, class Point>
  static NTKFAST_HD NTKFAST_INLINE V row_value(int k, const Row& l, const Point& x) {
    const V zero(scalar_of<V>(0)), one(scalar_of<V>(1));
    LabelSums<V> sums{zero, zero, zero, one, l(0), zero};
    for (int j = 1; j < k; ++j) sums.reference = max_of(sums.reference, l(j));
    for (int j = 0; j < k; ++j) {
      const V u = l(j) - sums.reference;
      const V w = exp2_of(u);
      sums.Z = sums.Z + w;
      sums.N = fma_of(u, w, sums.N);
      sums.squares = fma_of(w, w, sums.squares);
      if constexpr (kHasTargets) sums.target = fma_of(x(k + j), u, sums.target);
    }
    return Criterion::of(sums);
  }
};

template <class Criterion>
struct Block<Criterion, OfArgmax> : Criterion {
  static constexpr bool kStarts = true, kRowwise = true;
  static NTKFAST_HD int point_size(int k) { return k + 1; }  // logits (k), argmax f
  template <class T>
  static NTKFAST_HD bool prepare_point(const Settings& s, const BlockPoint& x, double*,
                                       Prepared<T> out) {
    prepare_logits(s, 1.0, x.inputs, out);
    out[s.classes] = static_cast<T>(argmax(x.inputs.f, s.classes));
    return true;
  }
  template <class T>
  static NTKFAST_HD int prepare_candidate(const Settings& s, const BlockCandidate& c,
                                          CandidateRows<T> out) {
    return label_rows(s, c, 1.0, 1.0, !has<Criterion>(kReadsLabelProbs), out);
  }
  template <class V, class Row, class Point>
  static NTKFAST_HD NTKFAST_INLINE V row_value(int k, const Row& l, const Point& x) {
    using T = scalar_of<V>;
    V top = l(0), where(T(0));
    for (int j = 1; j < k; ++j) {
      const V value = l(j);
      where = select(value > top, V(T(j)), where);
      top = max_of(top, value);
    }
    return Criterion::of(where, x(k));
  }
};

template <class V, class Row>
NTKFAST_HD NTKFAST_INLINE V squared_norm(int k, const Row& l) {
  V sum(scalar_of<V>(0));
  for (int j = 0; j < k; ++j) {
    const V value = l(j);  // which a GPU forms at every call
    sum = fma_of(value, value, sum);
  }
  return sum;
}

/// Planes F - f (k), so that a row is f+ - f.
template <class Criterion>
struct Block<Criterion, OfChange> : Criterion {
  static constexpr bool kStarts = true, kRowwise = true;
  static NTKFAST_HD int point_size(int k) { return k; }
  template <class T>
  static NTKFAST_HD bool prepare_point(const Settings& s, const BlockPoint& x, double*,
                                       Prepared<T> out) {
    for (int j = 0; j < s.classes; ++j) out[j] = static_cast<T>(x.inputs.F[j] - x.inputs.f[j]);
    return true;
  }
  template <class T>
  static NTKFAST_HD int prepare_candidate(const Settings& s, const BlockCandidate& c,
                                          CandidateRows<T> out) {
    return label_rows(s, c, 1.0, 1.0, !has<Criterion>(kReadsLabelProbs), out);
  }
  template <class V, class Row, class Point>
  static NTKFAST_HD NTKFAST_INLINE V row_value(int k, const Row& l, const Point&) {
    return Criterion::of(squared_norm<V>(k, l));
  }
};

// --- Criteria of the covariance alone ---

/// The rows of L^-1, all of weight `weight`; none without information, -1 where A is not positive
/// definite.
template <class T>
NTKFAST_HD_CALL int whitening_rows(const Settings& settings, const BlockCandidate& c, double weight,
                                   CandidateRows<T> out) {
  const int k = settings.classes;
  double *L = out.work, *inverse = out.work + k * k;
  if (tells_nothing(c.inputs.noise)) return 0;
  if (!factor_block(k, c.variance, c.inputs.noise, L)) return -1;
  invert_lower(k, L, inverse);
  for (int i = 0; i < k; ++i) {
    for (int j = 0; j < k; ++j) out.rows[i * k + j] = bounded<T>(inverse[i * k + j]);
    out.weights[i] = static_cast<T>(weight);
  }
  return k;
}

/// For variance_reduction (1/k) tr(S(x,c) A^-1 S(c,x)) = (1/k) ||L^-1 S(c,x)||^2.
template <class Criterion>
struct Block<Criterion, OfWhitened> : Criterion {
  static constexpr bool kStarts = false, kRowwise = true;
  static NTKFAST_HD int point_size(int) { return 0; }
  template <class T>
  static NTKFAST_HD bool prepare_point(const Settings&, const BlockPoint&, double*, Prepared<T>) {
    return true;
  }
  template <class T>
  static NTKFAST_HD int prepare_candidate(const Settings& s, const BlockCandidate& c,
                                          CandidateRows<T> out) {
    return whitening_rows(s, c, 1.0 / s.classes, out);
  }
  template <class V, class Row, class Point>
  static NTKFAST_HD NTKFAST_INLINE V row_value(int k, const Row& l, const Point&) {
    V sum(scalar_of<V>(0));
    for (int j = 0; j < k; ++j) sum = sum + Criterion::of(l(j));
    return sum;
  }
};

/// For epig -1/(2k) log det(I - M M^T), M = L_x^-1 S(x,c) L^-T with L_x L_x^T = S(x,x) + lam I.
///
/// With E = I - M M^T = U D U^T (U unit lower triangular) log det E is the sum of log d_j, and
/// d_j = 1 - t_j with t_j = (M M^T)_jj + sum_{m<j} U_jm^2 d_m >= 0, a sum without cancellation:
/// small information is known to the last bits of t. Near t = 1 a bound is: M M^T <= p P_x with p =
/// s / (s + lam_c), s any bound of the eigenvalues of S(c,c), and P_x = I - Q_x, Q_x = lam L_x^-1
/// L_x^-T, so that E >= (1 - p) I + p Q_x. Pivots grow with the matrix and superadditively, and
/// those of Q_x, whose factor L_x^-1 is triangular, are lam / (L_x)_jj^2:
///     d_j >= (1 - p) + p lam / (L_x)_jj^2,
/// which no cancellation has touched (the bound of the scalar criterion for a kernel K (x) I_k).
template <class Criterion>
struct Block<Criterion, OfCorrelation> : Criterion {
  static constexpr bool kStarts = false, kRowwise = false;
  // L_x^-1, lower triangle row by row; lam / (L_x)_jj^2 (k)
  static NTKFAST_HD int point_size(int k) { return k * (k + 1) / 2 + k; }
  template <class T>
  static NTKFAST_HD bool prepare_point(const Settings& s, const BlockPoint& x, double* work,
                                       Prepared<T> out) {
    const int k = s.classes;
    double *L = work, *inverse = work + k * k;
    if (!factor_block(k, x.variance, s.ridge, L)) return false;
    invert_lower(k, L, inverse);
    for (int i = 0; i < k; ++i) {
      for (int j = 0; j <= i; ++j) out[i * (i + 1) / 2 + j] = bounded<T>(inverse[i * k + j]);
      out[k * (k + 1) / 2 + i] = static_cast<T>(s.ridge / (L[i * k + i] * L[i * k + i]));
    }
    return true;
  }
  template <class T>
  static NTKFAST_HD int prepare_candidate(const Settings& s, const BlockCandidate& c,
                                          CandidateRows<T> out) {
    const int k = s.classes;
    double largest = 0;  // sums of absolute values in rows bound the eigenvalues
    for (int i = 0; i < k; ++i) {
      double sum = 0;
      for (int j = 0; j < k; ++j) sum += fabs(c.variance[i > j ? i * k + j : j * k + i]);
      largest = sum > largest ? sum : largest;
    }
    const double total = largest + c.inputs.noise;
    out.further[0] = static_cast<T>(tells_nothing(c.inputs.noise) ? 1.0 : c.inputs.noise / total);
    out.further[1] = static_cast<T>(tells_nothing(c.inputs.noise) ? 0.0 : largest / total);
    return whitening_rows(s, c, 1.0, out);
  }
  static NTKFAST_HD int64_t scratch_size(int k) { return int64_t{k} * (k + 1) / 2 + 2 * k; }

  /// `rows` (k, k) holds L^-1 S(c,x) and is overwritten; scratch: a V*, or what stands for one, of
  /// scratch_size(k) values.
  template <class V, class Grid, class Point, class Candidate, class Memory>
  static NTKFAST_HD NTKFAST_INLINE V pair_value(int k, const Grid& rows, const Point& x,
                                                const Candidate& further, Memory scratch) {
    using T = scalar_of<V>;
    const int triangle = k * (k + 1) / 2;
    Memory U = scratch, inverse = scratch + triangle, scaled = inverse + k;
    // rows <- M^T, its last columns first: column j needs the first j + 1 of what was there.
    for (int i = 0; i < k; ++i)
      for (int j = k - 1; j >= 0; --j) {
        V sum(T(0));
        for (int b = 0; b <= j; ++b) sum = fma_of(rows.load(i, b), x(j * (j + 1) / 2 + b), sum);
        rows.store(i, j, sum);
      }
    for (int i = 0; i < triangle; ++i) U[i] = V(T(0));
    for (int i = 0; i < k; ++i)
      for (int j = 0; j < k; ++j) {
        const V left = rows.load(i, j);
        for (int m = 0; m <= j; ++m)
          U[j * (j + 1) / 2 + m] = fma_of(left, rows.load(i, m), U[j * (j + 1) / 2 + m]);
      }
    return value_of_product<0, V>(k, U, x, further, inverse, scaled);
  }

  /// From U = M M^T, its lower triangle row by row, which is overwritten; inverse, scaled: k values
  /// each. K > 0: k, and all of them may be arrays in registers.
  template <int K, class V, class Triangle, class Point, class Candidate, class Values>
  static NTKFAST_HD NTKFAST_INLINE V value_of_product(int k, Triangle& U, const Point& x,
                                                      const Candidate& further, Values& inverse,
                                                      Values& scaled) {
    using T = scalar_of<V>;
    const int count = K > 0 ? K : k;
    const V least(T(1e-37));
    V sum(T(0));
    NTKFAST_UNROLL_CLASSES_ON_GPU
    for (int j = 0; j < count; ++j) {
      const int row = j * (j + 1) / 2;
      V taken = U[row + j];  // t_j
      NTKFAST_UNROLL_CLASSES_ON_GPU
      for (int m = 0; m < (K > 0 ? K : j); ++m) {  // bounds that the compiler knows: unrolled whole
        if (K > 0 && m >= j) continue;
        V e = -U[row + m];
        NTKFAST_UNROLL_CLASSES_ON_GPU
        for (int i = 0; i < (K > 0 ? K : m); ++i)
          if (K <= 0 || i < m) e = fma_of(-scaled[i], U[m * (m + 1) / 2 + i], e);
        scaled[m] = e;  // U_jm d_m
        U[row + m] = e * inverse[m];
        taken = fma_of(scaled[m], U[row + m], taken);
      }
      const V bound = fma_of(V(further(1)), x(count * (count + 1) / 2 + j), V(further(0)));
      const V d = max_of(max_of(V(T(1)) - taken, bound), least);
      inverse[j] = reciprocal(d);
      sum = sum + Criterion::of(taken, d);
    }
    return sum * reciprocal(V(T(count)));
  }
};

}  // namespace
}  // namespace ntkfast
