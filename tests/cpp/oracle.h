// The criteria by their definitions (docs/method.md, section 4): every f+ is formed, in long
// double.
#pragma once

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

namespace ntkfast {
namespace oracle {

using Vector = std::vector<long double>;

inline int first_largest(const Vector& values) {
  return static_cast<int>(std::max_element(values.begin(), values.end()) - values.begin());
}

inline Vector log_softmax(Vector l) {
  const long double largest = *std::max_element(l.begin(), l.end());
  long double Z = 0;
  for (const long double value : l) Z += expl(value - largest);
  for (long double& value : l) value -= largest + logl(Z);
  return l;
}

/// Residual s (e_y - B) of a candidate's hypothetical label, B = softmax(F / T_r) for
/// cross-entropy.
inline Vector residual(int y, Vector F_c, bool cross_entropy, double label_scale,
                       double residual_temperature) {
  if (cross_entropy) {
    for (long double& value : F_c) value /= residual_temperature;
    F_c = log_softmax(F_c);
    for (long double& value : F_c) value = expl(value);
  }
  for (std::size_t j = 0; j < F_c.size(); ++j)
    F_c[j] = label_scale * ((static_cast<int>(j) == y ? 1 : 0) - F_c[j]);
  return F_c;
}

/// What f+ is worth at an evaluation point; `l` is its log-softmax.
inline long double worth(const std::string& criterion, const Vector& f_plus, const Vector& l,
                         const Vector& f, const Vector& q) {
  long double sum = 0;
  if (criterion == "mlmoc" || criterion == "emoc") {
    for (std::size_t j = 0; j < f.size(); ++j) sum += (f_plus[j] - f[j]) * (f_plus[j] - f[j]);
    return sqrtl(sum);
  }
  if (criterion == "label_flips") return first_largest(f_plus) != first_largest(f);
  if (criterion == "expected_error") return expl(*std::max_element(l.begin(), l.end())) - 1;
  for (std::size_t j = 0; j < l.size(); ++j) {
    if (criterion == "expected_entropy") sum += expl(l[j]) > 0 ? expl(l[j]) * l[j] : 0;
    if (criterion == "expected_log_loss") sum += q[j] * l[j];
    if (criterion == "expected_brier") sum -= expl(l[j]) * (1 - expl(l[j]));
  }
  return sum;
}

/// The summand of a look-ahead criterion. f_plus(y): outputs of the point after label y; f, q: its
/// outputs before and its target; f_c, P: outputs of the candidate and the distribution of its
/// label. Where the two largest of an f+ are closer than `near`, rounding may decide a flip: what
/// that is worth is added to *slack.
template <class FPlus>
long double look_ahead(const std::string& criterion, FPlus f_plus, const Vector& f, const Vector& q,
                       const Vector& f_c, const Vector& P, double temperature, double near = 0,
                       double* slack = nullptr) {
  long double sum = 0;
  for (int y = 0; y < static_cast<int>(P.size()); ++y) {
    const long double weight = criterion == "mlmoc" ? y == first_largest(f_c) : P[y];
    const Vector after = f_plus(y);
    Vector l = after;
    for (long double& value : l) value /= temperature;
    sum += weight * worth(criterion, after, log_softmax(l), f, q);
    const int top = first_largest(after);
    for (int j = 0; slack && criterion == "label_flips" && j < static_cast<int>(f.size()); ++j)
      if (j != top && after[top] - after[j] < near) *slack += static_cast<double>(weight);
  }
  return sum;
}

/// The summand of a criterion of a scalar covariance; totals are variances plus noises.
inline long double of_covariance(const std::string& criterion, long double S, long double s_c,
                                 long double total_c, long double s_x, long double total_x,
                                 long double covered, long double radius) {
  if (criterion == "variance_reduction") return S * S / total_c;
  if (criterion != "epig") {  // coverage, of features of length one
    const long double rho = s_c > 0 && s_x > 0 ? S / sqrtl(s_c * s_x) : 0;
    const long double square = std::max(2 - 2 * rho, 0.0L);
    long double k = std::min(rho, 1.0L);
    if (criterion == "gaussian_coverage") k = expl(-square / (radius * radius));
    if (criterion == "ball_coverage") k = square < radius * radius;
    return std::max(k - covered, 0.0L);
  }
  return -0.5L * log1pl(-std::min(S * S, s_c * s_x) / (total_c * total_x));  // epig
}

}  // namespace oracle
}  // namespace ntkfast
