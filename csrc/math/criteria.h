// Every acquisition criterion, written once for all backends and for both kinds of kernels. The
// look-ahead criteria follow Mohamadi, Bae, Sutherland (NeurIPS 2022). The utility of a candidate c
// is always
//     u(c) = sum_x v(x) value(x, c),          larger = query first.
//
// A criterion is a struct with
//     name       what users type
//     Form       what its formula is a function of; a base class below
//     kTraits    what it reads and what it can do
//     of(...)    the formula
// scalar_criteria.h makes of it what drivers for a scalar kernel call, for numbers or registers of
// either precision on a CPU or a GPU; block_criteria.h what those for a k x k kernel call.
//
// To add a criterion: write the struct, append it to `Criteria`, and add its row to
// ntkfast/criteria.py and its definition to tests/data/oracle.py and tests/cpp/oracle.h.
#pragma once

#include "math/softmax_rank_one.h"

namespace ntkfast {
namespace {

/// What a criterion reads besides F, and what it can do.
enum Trait : unsigned {
  kLookAhead = 1,         // at outputs after a hypothetical label: needs two classes at least
  kReadsLabelProbs = 2,   // P(y|c); a look-ahead criterion without it takes the label argmax f(c)
  kReadsTemperature = 4,  // divides outputs
  kReadsTargets = 8,      // q(x)
  kReadsPointVariance = 16,  // S(x, x)
  kMoments = 32,             // is tr((S_cc + lam_c I)^-1 q_c), which features give without pairs
  kReadsCovered = 64,        // m(x): how well the points so far cover x
  kReadsRadius = 128,        // of coverage
  kReadsSquares = 256,       // LabelSums::squares
};
/// Names of the traits that callers need to know, from the lowest bit on. Where a trait is an
/// argument it has the argument's name.
constexpr const char* kTraitNames[] = {"look_ahead",       "label_probs",    "temperature",
                                       "log_loss_targets", "point_variance", "moments",
                                       "covered",          "radius"};

template <class Criterion>
NTKFAST_HD constexpr bool has(Trait trait) {
  return (Criterion::kTraits & trait) != 0;
}

// --- Functions of the softmax of f+, expected over the labels: kScale sum_y P(y|c) of(sums) ---

struct OfSoftmax {
  using Form = OfSoftmax;
  static constexpr unsigned kTraits = kLookAhead | kReadsLabelProbs | kReadsTemperature;
  static constexpr double kScale = 1;
};

/// - sum_y P(y|c) H(softmax f+)
struct ExpectedEntropy : OfSoftmax {
  static constexpr const char* name = "expected_entropy";
  static constexpr double kScale = -kLn2;
  template <class V>
  static NTKFAST_HD NTKFAST_INLINE V of(const LabelSums<V>& l) {
    return log2_of(l.Z) - l.N * reciprocal(l.Z);
  }
};

/// sum_y P(y|c) sum_j q_j(x) log softmax(f+)_j
struct ExpectedLogLoss : OfSoftmax {
  static constexpr const char* name = "expected_log_loss";
  static constexpr unsigned kTraits = OfSoftmax::kTraits | kReadsTargets;
  static constexpr double kScale = kLn2;
  template <class V>
  static NTKFAST_HD NTKFAST_INLINE V of(const LabelSums<V>& l) {
    return l.target - log2_of(l.Z);
  }
};

/// sum_y P(y|c) (max_j softmax(f+)_j - 1)
struct ExpectedError : OfSoftmax {
  static constexpr const char* name = "expected_error";
  template <class V>
  static NTKFAST_HD NTKFAST_INLINE V of(const LabelSums<V>& l) {
    return (l.top - l.Z) * reciprocal(l.Z);  // zero, not its rounding, where one class is left
  }
};

/// - sum_y P(y|c) sum_j p_j (1 - p_j), p = softmax f+
struct ExpectedBrier : OfSoftmax {
  static constexpr const char* name = "expected_brier";
  static constexpr unsigned kTraits = OfSoftmax::kTraits | kReadsSquares;
  template <class V>
  static NTKFAST_HD NTKFAST_INLINE V of(const LabelSums<V>& l) {
    const V inverse = reciprocal(l.Z);
    return fma_of(l.squares * inverse, inverse, V(scalar_of<V>(-1)));
  }
};

// --- Functions of argmax f+ and argmax f, expected over the labels ---

struct OfArgmax {
  using Form = OfArgmax;
  static constexpr unsigned kTraits = kLookAhead | kReadsLabelProbs;
};

/// sum_y P(y|c) [argmax f+ != argmax f]; ties go to the lowest class.
struct LabelFlips : OfArgmax {
  static constexpr const char* name = "label_flips";
  template <class V>
  static NTKFAST_HD NTKFAST_INLINE V of(V after, V before) {
    using T = scalar_of<V>;
    return select(after == before, V(T(0)), V(T(1)));
  }
};

// --- Functions of |f+ - f|^2, of the raw outputs ---

struct OfChange {
  using Form = OfChange;
  template <class V>
  static NTKFAST_HD NTKFAST_INLINE V of(V squared_norm) {
    return sqrt_of(max_of(squared_norm, V(scalar_of<V>(0))));
  }
};

/// |f+ - f| under the label argmax f(c)  (eq. 13, "most likely model output change")
struct Mlmoc : OfChange {
  static constexpr const char* name = "mlmoc";
  static constexpr unsigned kTraits = kLookAhead;
};

/// sum_y P(y|c) |f+ - f|  (expected model output change)
struct Emoc : OfChange {
  static constexpr const char* name = "emoc";
  static constexpr unsigned kTraits = kLookAhead | kReadsLabelProbs;
};

// --- Functions of the covariance alone ---

/// The mean over k of a function of every entry of L^-1 S(c, x), L L^T = S(c, c) + lam_c.
struct OfWhitened {
  using Form = OfWhitened;
};

/// S(x, c)^2 / (S(c, c) + lam_c)
struct VarianceReduction : OfWhitened {
  static constexpr const char* name = "variance_reduction";
  static constexpr unsigned kTraits = kMoments;
  template <class V>
  static NTKFAST_HD NTKFAST_INLINE V of(V z) {
    return z * z;
  }
};

/// The mean over k of a function of the pivots 1 - t of the correlation that a label leaves; `left`
/// is 1 - t, from sums that do not cancel where t is near one.
struct OfCorrelation {
  using Form = OfCorrelation;
};

/// -1/2 log(1 - rho^2), rho^2 = S(x, c)^2 / ((S(c, c) + lam_c)(S(x, x) + lam)): the mutual
/// information between the noisy labels of x and c.
struct Epig : OfCorrelation {
  static constexpr const char* name = "epig";
  static constexpr unsigned kTraits = kReadsPointVariance;
  template <class V>
  static NTKFAST_HD NTKFAST_INLINE V of(V t, V left) {
    using T = scalar_of<V>;
    const V half(T(0.5));
    return V(T(-0.5 * kLn2)) * select(t > half, log2_of(left), log2_one_minus(min_of(t, half)));
  }
};

// --- Functions of the kernel alone, before any label: what a candidate covers anew ---

/// max(0, k(x, c) - m(x)), with m(x) the largest k(x, l) of the points l so far and k a function of
/// rho = K(x, c) / sqrt(K(x, x) K(c, c)), the kernel of features of length one. It is 1 at rho = 1,
/// and is given t = scale(radius) rho + shift(radius).
struct OfCoverage {
  using Form = OfCoverage;
  static constexpr unsigned kTraits = kReadsCovered | kReadsRadius;
};

/// k = rho
struct CosineCoverage : OfCoverage {
  static constexpr const char* name = "cosine_coverage";
  static constexpr unsigned kTraits = kReadsCovered;
  static NTKFAST_HD double scale(double) { return 1; }
  static NTKFAST_HD double shift(double) { return 0; }
  template <class V>
  static NTKFAST_HD NTKFAST_INLINE V of(V t) {
    return min_of(t, V(scalar_of<V>(1)));
  }
};

/// k = exp(-|x - c|^2 / radius^2), |x - c|^2 = 2 - 2 rho
struct GaussianCoverage : OfCoverage {
  static constexpr const char* name = "gaussian_coverage";
  static NTKFAST_HD double scale(double radius) { return 2 * kLog2E / (radius * radius); }
  static NTKFAST_HD double shift(double radius) { return -scale(radius); }
  template <class V>
  static NTKFAST_HD NTKFAST_INLINE V of(V t) {
    using T = scalar_of<V>;
    return exp2_of(max_of(min_of(t, V(T(0))), V(T(-4096))));
  }
};

/// k = [|x - c| < radius]
struct BallCoverage : OfCoverage {
  static constexpr const char* name = "ball_coverage";
  static NTKFAST_HD double scale(double) { return 1; }
  static NTKFAST_HD double shift(double radius) { return 0.5 * radius * radius - 1; }
  template <class V>
  static NTKFAST_HD NTKFAST_INLINE V of(V t) {
    using T = scalar_of<V>;
    return select(t > V(T(0)), V(T(1)), V(T(0)));
  }
};

// --- The list ---

template <class... C>
struct CriterionList {
  static constexpr int size = sizeof...(C);
};
using Criteria = CriterionList<Mlmoc, Emoc, ExpectedEntropy, ExpectedLogLoss, ExpectedError,
                               ExpectedBrier, LabelFlips, VarianceReduction, Epig, CosineCoverage,
                               GaussianCoverage, BallCoverage>;

template <class Visitor>
NTKFAST_INLINE void visit_criterion(int, Visitor&&, CriterionList<>) {}
template <class Visitor, class First, class... Rest>
NTKFAST_INLINE void visit_criterion(int index, Visitor&& visitor, CriterionList<First, Rest...>) {
  if (index == 0) {
    visitor(First{});
  } else {
    visit_criterion(index - 1, visitor, CriterionList<Rest...>{});
  }
}
/// Calls visitor(C{}) with the criterion C of this index in `Criteria`.
template <class Visitor>
NTKFAST_INLINE void visit_criterion(int index, Visitor&& visitor) {
  visit_criterion(index, visitor, Criteria{});
}

}  // namespace
}  // namespace ntkfast
