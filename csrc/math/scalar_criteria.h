// What drivers for a scalar kernel S(x, c) call of a criterion:
//     point_size(k), prepare_point(...)          what is kept of an evaluation point x
//     candidate_size(k), prepare_candidate(...)  what is kept of a candidate c
//     value<K>(k, S, x, c, scratch)              the summand, from the covariance S(x, c);
//                                                K = 0: the number of classes is k, at run time,
//                                                and scratch holds 2 k values
// prepare_* run once per point in double; value() runs for every pair in the compute type.
// Scalar<Criterion> is one of the few templates below, chosen by the form of the criterion.
#pragma once

#include "core/score_inputs.h"
#include "math/criteria.h"

namespace ntkfast {
namespace {

/// One evaluation point. F: posterior mean, f: outputs of the trained network, q: target
/// distribution (log loss).
struct PointInputs {
  const double* F;
  const double* f;
  const double* q;
  double variance;  // S(x, x)
  double covered;   // m(x)
};

/// One candidate. P: distribution of its hypothetical label; noise lam_c, infinity allowed.
struct CandidateInputs {
  const double* F;
  const double* f;
  const double* P;
  double variance;  // S(c, c)
  double noise;
};

/// Where prepare_* write: element j of the prepared point or candidate, in the compute type. From
/// element `planes` on they may lie side by side.
template <class T>
struct Prepared {
  T* data;
  int64_t stride;
  int64_t planes = INT64_MAX;
  T* row = nullptr;
  NTKFAST_HD T& operator[](int64_t j) const {
    return j < planes ? data[j * stride] : row[j - planes];
  }
};

template <class V, class Source>
struct Shifted {  // source(offset + j)
  const Source& source;
  int offset;
  NTKFAST_HD NTKFAST_INLINE V operator()(int j) const { return V(source(offset + j)); }
};

NTKFAST_HD NTKFAST_INLINE int argmax(const double* values, int k) {
  int best = 0;
  for (int j = 1; j < k; ++j) best = values[j] > values[best] ? j : best;
  return best;
}

/// 1 / (S(c, c) + lam_c); zero for infinite noise and for a candidate about which nothing can be
/// learned.
NTKFAST_HD NTKFAST_INLINE double step_per_covariance(const CandidateInputs& c) {
  const double total = c.variance + c.noise;
  return total > 0 && total < 1e300 ? 1.0 / total : 0.0;
}

/// Baseline B of a hypothetical label's residual s (e_y - B): F(c), or softmax(F(c) / T_r) for
/// cross-entropy, exactly what conditioning on a real label takes.
struct Baseline {
  double shift, total, temperature;
  const double* F;
  bool cross_entropy;
  NTKFAST_HD Baseline(const Settings& settings, const CandidateInputs& c)
      : shift(0),
        total(1),
        temperature(settings.residual_temperature),
        F(c.F),
        cross_entropy(settings.cross_entropy) {
    if (!cross_entropy) return;
    shift = F[argmax(F, settings.classes)];
    total = 0;
    for (int j = 0; j < settings.classes; ++j) total += exp((F[j] - shift) / temperature);
  }
  NTKFAST_HD double operator()(int j) const {
    return cross_entropy ? exp((F[j] - shift) / temperature) / total : F[j];
  }
};

/// The value in the compute type, kept far enough from its largest number that products stay
/// finite.
template <class T>
NTKFAST_HD NTKFAST_INLINE T bounded(double value) {
  const double limit = -static_cast<double>(logit_floor<T>());
  return static_cast<T>(value < -limit ? -limit : value > limit ? limit : value);
}

template <class Criterion, class Form = typename Criterion::Form>
struct Scalar;

/// Calls visitor(Scalar<C>{}) with the criterion C of this index.
template <class Visitor>
NTKFAST_INLINE void visit_scalar(int index, Visitor&& visitor) {
  visit_criterion(index, [&](auto criterion) { visitor(Scalar<decltype(criterion)>{}); });
}

/// Logits of a point in units of log2 over the temperature, shifted so that the largest is zero: in
/// float the classes that matter then keep their full precision however large the logits are.
template <class T>
NTKFAST_HD_CALL void prepare_logits(const Settings& settings, double unit, const PointInputs& x,
                                    Prepared<T> out) {
  const double largest = x.F[argmax(x.F, settings.classes)];
  for (int j = 0; j < settings.classes; ++j) out[j] = bounded<T>((x.F[j] - largest) * unit);
}

/// Layout of a candidate of a label criterion: A per unit of covariance, 1 + max |B|, B (k), P (k).
/// B is centred: softmax does not see a common offset.
template <class T>
NTKFAST_HD_CALL void prepare_labels(const Settings& settings, double unit, double weight,
                                    const CandidateInputs& c, Prepared<T> out) {
  const int k = settings.classes;
  const Baseline B(settings, c);
  double low = B(0), high = B(0);
  for (int j = 1; j < k; ++j) {
    low = B(j) < low ? B(j) : low;
    high = B(j) > high ? B(j) : high;
  }
  const double centre = 0.5 * (low + high);
  out[0] = bounded<T>(settings.label_scale * unit * step_per_covariance(c));
  out[1] = static_cast<T>(1 + 0.5 * (high - low));
  for (int j = 0; j < k; ++j) {
    out[2 + j] = static_cast<T>(B(j) - centre);
    out[2 + k + j] = static_cast<T>(weight * c.P[j]);
  }
}

template <class V, class Candidate>
NTKFAST_HD NTKFAST_INLINE V label_step(V S, const Candidate& c) {
  using T = scalar_of<V>;
  return max_of(min_of(S * V(c(0)), V(step_limit<T>())), V(-step_limit<T>()));
}

/// Logits (k), and q (k) where the criterion reads them.
template <class Criterion, class T>
NTKFAST_HD NTKFAST_INLINE void prepare_softmax(const Settings& s, const PointInputs& x,
                                               Prepared<T> out) {
  prepare_logits(s, kLog2E / s.temperature, x, out);
  if constexpr (has<Criterion>(kReadsTargets)) {
    for (int j = 0; j < s.classes; ++j) out[s.classes + j] = static_cast<T>(x.q[j]);
  }
}

template <class Criterion>
struct Scalar<Criterion, OfSoftmax> : Criterion {
  static constexpr bool kHasTargets = has<Criterion>(kReadsTargets);
  // logits (k); q (k) and sum_j q_j F_j (1)
  static NTKFAST_HD int point_size(int k) { return kHasTargets ? 2 * k + 1 : k; }
  static NTKFAST_HD constexpr int candidate_size(int k) { return 2 + 2 * k; }
  template <class T>
  static NTKFAST_HD void prepare_point(const Settings& s, const PointInputs& x, Prepared<T> out) {
    prepare_softmax<Criterion>(s, x, out);
    if constexpr (kHasTargets) {
      const double unit = kLog2E / s.temperature, largest = x.F[argmax(x.F, s.classes)];
      double mean = 0;
      for (int j = 0; j < s.classes; ++j)
        if (x.q[j] > 0) mean += x.q[j] * (x.F[j] - largest) * unit;
      out[2 * s.classes] = bounded<T>(mean);
    }
  }
  template <class T>
  static NTKFAST_HD void prepare_candidate(const Settings& s, const CandidateInputs& c,
                                           Prepared<T> out) {
    prepare_labels(s, kLog2E / s.temperature, Criterion::kScale, c, out);
  }
  template <class V, class Weights, class Targets>
  struct Body {
    const Weights& P;
    const Targets& q;
    V base, A, sum;  // base = sum_j q_j l_j
    NTKFAST_HD NTKFAST_INLINE void operator()(int y, LabelSums<V> l) {
      if constexpr (kHasTargets) l.target = fma_of(q(y), A, base) - l.reference;
      sum = fma_of(P(y), Criterion::of(l), sum);
    }
  };
  template <int K, class V, class Point, class Candidate>
  static NTKFAST_HD NTKFAST_INLINE V value(int k, V S, const Point& x, const Candidate& c,
                                           V* scratch) {
    return value_of<K, kAnyStep>(k, label_step(S, c), x, c, scratch);
  }
  /// A, which is the step where it is moderate.
  template <class V, class Candidate>
  static NTKFAST_HD NTKFAST_INLINE V moderate_step_of(V S, const Candidate& c) {
    return S * V(c(0));
  }
  /// Whether moderate_value(A) is the value, for all lanes: nearly always. Not where A is NaN.
  template <class V, class Candidate>
  static NTKFAST_HD NTKFAST_INLINE bool is_moderate(V A, const Candidate& c) {
    return all_of(abs_of(A) * bound<V>(c) <= V(moderate_step<scalar_of<V>>()));
  }
  template <int K, class V, class Point, class Candidate>
  static NTKFAST_HD NTKFAST_INLINE V moderate_value(int k, V A, const Point& x,
                                                    const Candidate& c) {
    return value_of<K, kModerateStep>(k, A, x, c, static_cast<V*>(nullptr));
  }
  /// The value where the step of some lane is not moderate. On a GPU.
  template <class V, class Point, class Candidate>
  static NTKFAST_HD NTKFAST_INLINE V large_value(int k, V S, const Point& x, const Candidate& c) {
    return value_of<kAnyClasses, kLargeStep>(k, label_step(S, c), x, c, static_cast<V*>(nullptr));
  }

 private:
  enum Step { kAnyStep, kModerateStep, kLargeStep };
  template <class V, class Candidate>
  static NTKFAST_HD NTKFAST_INLINE V bound(const Candidate& c) {
    // Squares double the step.
    return has<Criterion>(kReadsSquares) ? V(c(1)) + V(c(1)) : V(c(1));
  }
  template <int K, Step kStep, class V, class Point, class Candidate>
  static NTKFAST_HD NTKFAST_INLINE V value_of(int k, V A, const Point& x, const Candidate& c,
                                              V* scratch) {
    using T = scalar_of<V>;
    const int count = K > 0 ? K : k;
    const Shifted<V, Point> q{x, count};
    const Shifted<V, Candidate> B{c, 2}, P{c, 2 + count};
    V base(T(0));
    if constexpr (kHasTargets) {
      base = x(2 * count);
      NTKFAST_UNROLL
      for (int j = 0; j < count; ++j) base = fma_of(-A * B(j), q(j), base);
    }
    Body<V, Shifted<V, Candidate>, Shifted<V, Point>> body{P, q, base, A, V(T(0))};
    if constexpr (kStep == kModerateStep) {
      LabelScratch<K, V> kept(scratch, k);
      moderate_labels<K>(k, A, x, B, kept, body);
    } else if constexpr (kStep == kLargeStep) {
      for_each_label_of_large_step(k, A, x, B, body);
    } else {
      for_each_label<K>(k, A, bound<V>(c), x, B, scratch, body);
    }
    return body.sum;
  }
};

/// No exponentials: only the order of l matters.
template <class Criterion>
struct Scalar<Criterion, OfArgmax> : Criterion {
  static NTKFAST_HD int point_size(int k) { return 1 + k; }  // argmax f (1), logits (k)
  static NTKFAST_HD constexpr int candidate_size(int k) { return 2 + 2 * k; }
  template <class T>
  static NTKFAST_HD void prepare_point(const Settings& s, const PointInputs& x, Prepared<T> out) {
    out[0] = static_cast<T>(argmax(x.f, s.classes));
    prepare_logits(s, 1.0, x, Prepared<T>{out.data + out.stride, out.stride});
  }
  template <class T>
  static NTKFAST_HD void prepare_candidate(const Settings& s, const CandidateInputs& c,
                                           Prepared<T> out) {
    prepare_labels(s, 1.0, 1.0, c, out);
  }
  template <int K, class V, class Point, class Candidate>
  static NTKFAST_HD NTKFAST_INLINE V value(int k, V S, const Point& x, const Candidate& c, V*) {
    using T = scalar_of<V>;
    const int count = K > 0 ? K : k;
    const Shifted<V, Point> F{x, 1};
    const Shifted<V, Candidate> B{c, 2}, P{c, 2 + count};
    const V A = label_step(S, c), before = x(0);
    TopTwo<V> top(TopTwo<V>::lowest());
    NTKFAST_UNROLL
    for (int j = 0; j < count; ++j) top.add(fma_of(-A, B(j), F(j)), V(T(j)));
    V sum(T(0));
    NTKFAST_UNROLL
    for (int y = 0; y < count; ++y) {
      const V index{T(y)};
      const V raised = fma_of(-A, B(y), F(y)) + A;
      const auto is_top = top.where == index;
      const V rival = select(is_top, top.second, top.first);
      const V rival_index = select(is_top, top.where_second, top.where);
      const auto wins = (raised > rival) | ((raised == rival) & (index < rival_index));
      const V after = select(wins, index, rival_index);
      sum = fma_of(P(y), Criterion::of(after, before), sum);
    }
    return sum;
  }
};

// |f+ - f|^2 = |D|^2 + 2 a <D, r> + a^2 |r|^2, D = F - f

template <class V>
NTKFAST_HD NTKFAST_INLINE V squared_change(V D_D, V D_r, V r_r, V a) {
  return fma_of(a, fma_of(a, r_r, D_r + D_r), D_D);
}

/// |D|^2 (1), D (k)
template <class T>
NTKFAST_HD_CALL void prepare_change(const Settings& s, const PointInputs& x, Prepared<T> out) {
  double norm = 0;
  for (int j = 0; j < s.classes; ++j) {
    const double D = x.F[j] - x.f[j];
    norm += D * D;
    out[1 + j] = static_cast<T>(D);
  }
  out[0] = static_cast<T>(norm);
}

/// One label, argmax f(c).
template <class T>
NTKFAST_HD_CALL void prepare_likely_label(const Settings& s, const CandidateInputs& c,
                                          Prepared<T> out) {
  const Baseline B(s, c);
  const int label = argmax(c.f, s.classes);
  double norm = 0;
  for (int j = 0; j < s.classes; ++j) {
    const double r = s.label_scale * ((j == label ? 1.0 : 0.0) - B(j));
    norm += r * r;
    out[2 + j] = static_cast<T>(r);
  }
  out[0] = bounded<T>(step_per_covariance(c));
  out[1] = static_cast<T>(norm);
}

template <class T>
NTKFAST_HD_CALL void prepare_every_label(const Settings& s, const CandidateInputs& c,
                                         Prepared<T> out) {
  const Baseline B(s, c);
  const int k = s.classes;
  out[0] = bounded<T>(step_per_covariance(c));
  out[1] = static_cast<T>(s.label_scale);
  double B_B = 0;
  for (int j = 0; j < k; ++j) B_B += B(j) * B(j);
  for (int y = 0; y < k; ++y) {
    // |e_y - B|^2 = (1 - B_y)^2 + sum_{j != y} B_j^2; the sum is taken afresh where B_y dominates
    // it.
    const double B_y = B(y);
    double rest = B_B - B_y * B_y;
    if (rest < B_y * B_y) {
      rest = 0;
      for (int j = 0; j < k; ++j) rest += j == y ? 0.0 : B(j) * B(j);
    }
    const double norm = s.label_scale * s.label_scale * ((1 - B_y) * (1 - B_y) + rest);
    out[2 + y] = static_cast<T>(s.label_scale * B_y);
    out[2 + k + y] = static_cast<T>(norm);
    out[2 + 2 * k + y] = static_cast<T>(c.P[y]);
  }
}

template <class Criterion>
struct Scalar<Criterion, OfChange> : Criterion {
  static constexpr bool kEveryLabel = has<Criterion>(kReadsLabelProbs);
  static NTKFAST_HD int point_size(int k) { return 1 + k; }
  // a per covariance, then |r|^2, r (k) of one label, or s, s B (k), |r_y|^2 (k), P (k)
  static NTKFAST_HD constexpr int candidate_size(int k) { return 2 + (kEveryLabel ? 3 * k : k); }
  template <class T>
  static NTKFAST_HD void prepare_point(const Settings& s, const PointInputs& x, Prepared<T> out) {
    prepare_change(s, x, out);
  }
  template <class T>
  static NTKFAST_HD void prepare_candidate(const Settings& s, const CandidateInputs& c,
                                           Prepared<T> out) {
    if constexpr (kEveryLabel) {
      prepare_every_label(s, c, out);
    } else {
      prepare_likely_label(s, c, out);
    }
  }
  template <int K, class V, class Point, class Candidate>
  static NTKFAST_HD NTKFAST_INLINE V value(int k, V S, const Point& x, const Candidate& c, V*) {
    const int count = K > 0 ? K : k;
    const Shifted<V, Point> D{x, 1};
    const Shifted<V, Candidate> B{c, 2};
    const V a = S * V(c(0)), D_D(x(0));
    V D_B(scalar_of<V>(0));
    NTKFAST_UNROLL
    for (int j = 0; j < count; ++j) D_B = fma_of(D(j), B(j), D_B);
    if constexpr (!kEveryLabel) {
      return Criterion::of(squared_change(D_D, D_B, V(c(1)), a));
    } else {
      const Shifted<V, Candidate> r_r{c, 2 + count}, P{c, 2 + 2 * count};
      const V scale(c(1));
      V sum(scalar_of<V>(0));
      NTKFAST_UNROLL
      for (int y = 0; y < count; ++y) {
        const V D_r = fma_of(scale, D(y), -D_B);
        sum = fma_of(P(y), Criterion::of(squared_change(D_D, D_r, r_r(y), a)), sum);
      }
      return sum;
    }
  }
};

/// Square roots of the factor keep tiny and huge kernels inside float's range.
template <class Criterion>
struct Scalar<Criterion, OfWhitened> : Criterion {
  static NTKFAST_HD int point_size(int) { return 0; }
  static NTKFAST_HD constexpr int candidate_size(int) { return 1; }
  template <class T>
  static NTKFAST_HD void prepare_point(const Settings&, const PointInputs&, Prepared<T>) {}
  template <class T>
  static NTKFAST_HD void prepare_candidate(const Settings&, const CandidateInputs& c,
                                           Prepared<T> out) {
    out[0] = bounded<T>(sqrt(step_per_covariance(c)));
  }
  template <int K, class V, class Point, class Candidate>
  static NTKFAST_HD NTKFAST_INLINE V value(int, V S, const Point&, const Candidate& c, V*) {
    return Criterion::of(S * V(c(0)));
  }
};

/// t = rho^2. With p = S / (S + lam) of either point, rho^2 is at most p_c p_x. Near that bound
/// 1 - rho^2 = (1 - p_c p_x) + (p_c p_x - rho^2), whose first part q_c + p_c q_x (q = 1 - p) does
/// not cancel however small the noises are.
template <class Criterion>
struct Scalar<Criterion, OfCorrelation> : Criterion {
  static NTKFAST_HD int point_size(int) { return 3; }  // 1 / sqrt(S + lam), p, q
  static NTKFAST_HD constexpr int candidate_size(int) { return 3; }
  template <class T>
  static NTKFAST_HD void prepare_point(const Settings& s, const PointInputs& x, Prepared<T> out) {
    const double factor = 1.0 / (x.variance + s.ridge);
    out[0] = bounded<T>(sqrt(factor));
    out[1] = static_cast<T>(x.variance * factor);
    out[2] = static_cast<T>(s.ridge * factor);
  }
  template <class T>
  static NTKFAST_HD void prepare_candidate(const Settings&, const CandidateInputs& c,
                                           Prepared<T> out) {
    const double factor = step_per_covariance(c);
    out[0] = bounded<T>(sqrt(factor));
    out[1] = static_cast<T>(c.variance * factor);
    out[2] = static_cast<T>(factor > 0 ? c.noise * factor : 1.0);
  }
  template <int K, class V, class Point, class Candidate>
  static NTKFAST_HD NTKFAST_INLINE V value(int, V S, const Point& x, const Candidate& c, V*) {
    const V rho = S * V(c(0)) * x(0);
    const V bound = V(c(1)) * x(1);
    const V rho2 = min_of(rho * rho, bound);
    const V left = fma_of(V(c(1)), V(x(2)), V(c(2))) + (bound - rho2);
    return Criterion::of(rho2, max_of(left, V(scalar_of<V>(1e-37))));
  }
};

/// The covariance is K itself. A point without features covers nothing: its rho is zero.
template <class Criterion>
struct Scalar<Criterion, OfCoverage> : Criterion {
  static NTKFAST_HD int point_size(int) { return 2; }                // 1 / |x|, m
  static NTKFAST_HD constexpr int candidate_size(int) { return 2; }  // scale / |c|, shift
  static NTKFAST_HD double inverse_length(double square) {
    return square > 0 ? 1.0 / sqrt(square) : 0.0;
  }
  template <class T>
  static NTKFAST_HD void prepare_point(const Settings&, const PointInputs& x, Prepared<T> out) {
    out[0] = bounded<T>(inverse_length(x.variance));
    out[1] = static_cast<T>(x.covered);
  }
  template <class T>
  static NTKFAST_HD void prepare_candidate(const Settings& s, const CandidateInputs& c,
                                           Prepared<T> out) {
    out[0] = bounded<T>(Criterion::scale(s.radius) * inverse_length(c.variance));
    out[1] = bounded<T>(Criterion::shift(s.radius));
  }
  template <int K, class V, class Point, class Candidate>
  static NTKFAST_HD NTKFAST_INLINE V value(int, V S, const Point& x, const Candidate& c, V*) {
    const V t = fma_of(S * V(c(0)), V(x(0)), V(c(1)));
    return max_of(Criterion::of(t) - V(x(1)), V(scalar_of<V>(0)));
  }
};

}  // namespace
}  // namespace ntkfast
