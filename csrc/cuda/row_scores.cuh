// The scores of some pairs of points with one candidate, in a thread of the tensor-core kernels.
#pragma once

#include "cuda/score.cuh"

namespace ntkfast {
namespace {

/// kCount pairs of neighbouring points, 8 apart, as one point of 2 kCount lanes; planes are kStride
/// numbers apart.
template <class Pointer, int kCount, int kStride>
struct PointPairs {
  Pointer first;
  NTKFAST_DEVICE Lanes<float, 2 * kCount> operator()(int j) const {
    Lanes<float, 2 * kCount> result;
    NTKFAST_UNROLL_DEVICE
    for (int i = 0; i < kCount; ++i) {
      const Pair<float> pair = load_pair(first + (j * kStride + 8 * i));
      result.v[2 * i] = pair.v[0];
      result.v[2 * i + 1] = pair.v[1];
    }
    return result;
  }
};

/// The scores of kRowPairs pairs of points, 8 apart, which a thread has of a row of a tile: kPairs
/// at a time. Planes of points are kStride numbers apart.
template <class Criterion, int K, int kRowPairs, int kPairs, int kStride>
struct RowScores {
  using Values = Lanes<float, 2 * kPairs>;
  static constexpr int kPieces = kRowPairs / kPairs;
  /// Pieces whose scores are added in float.
  static constexpr int kSummed = kPairs < 4 ? 4 / kPairs : 1;
  static_assert(kPieces % kSummed == 0 && kPieces < 32, "");

  /// Pieces of a row with one of the `left` points from the first lane's on, which is the same for
  /// all lanes of a warp.
  static NTKFAST_DEVICE int pieces(int64_t left) {
    constexpr int kPoints = 8 * kPairs;
    return left >= kPieces * kPoints ? kPieces
           : left > 0                ? static_cast<int>((left + kPoints - 1) / kPoints)
                                     : 0;
  }

  /// The sum of weights times scores of the first pieces. `points` are the planes of the thread's
  /// first pair, S(i) are the covariances of piece i. Points beyond the last one weigh nothing:
  /// their features are zeros, and what is prepared of them is finite.
  ///
  /// What is rare waits for the end: without a branch there is nothing to come back from, which
  /// takes 9 to 14 cycles a time, and the next piece's numbers are on their way.
  template <class Points, class Candidate, class Covariances>
  static NTKFAST_DEVICE double sum(int k, int pieces, Points points, const Candidate& candidate,
                                   const Covariances& S) {
    double total = 0;
    uint32_t large = 0;  // a bit for each piece with a step that is not moderate
    Values next = S(0);
    NTKFAST_KEEP_LOOP
    for (int piece = 0; piece < pieces;) {
      Values sum(0.0f);
      const int end = piece + kSummed < pieces ? piece + kSummed : pieces;
      NTKFAST_KEEP_LOOP
      for (; piece < end; ++piece) {
        const Values covariance = next;
        next = S(piece + 1 < pieces ? piece + 1 : piece);
        const auto first = points + piece * (8 * kPairs);
        Values weight = weights_of(first), value;
        const PointPairs<decltype(first + 0), kPairs, kStride> point{first + kStride};
        if constexpr (kSoftmax) {
          Values A = Criterion::moderate_step_of(covariance, candidate);
          const bool moderate = Criterion::is_moderate(A, candidate);
          large |= moderate ? 0u : 1u << piece;
          NTKFAST_UNROLL_DEVICE
          for (int i = 0; i < 2 * kPairs; ++i) {
            A.v[i] = moderate ? A.v[i] : 0.0f;
            weight.v[i] = moderate ? weight.v[i] : 0.0f;
          }
          value = Criterion::template moderate_value<K>(k, A, point, candidate);
        } else {
          value = Criterion::template value<K>(k, covariance, point, candidate,
                                               static_cast<Values*>(nullptr));
        }
        sum = fma_of(weight, value, sum);
      }
      total += static_cast<double>(sum_of(sum));
    }
    if constexpr (kSoftmax) {
      NTKFAST_KEEP_LOOP
      for (int piece = 0; large >> piece != 0; ++piece) {
        if (!(large >> piece & 1)) continue;
        const auto first = points + piece * (8 * kPairs);
        const PointPairs<decltype(first + 0), kPairs, kStride> point{first + kStride};
        const Values value = Criterion::large_value(k, S(piece), point, candidate);
        total += static_cast<double>(sum_of(weights_of(first) * value));
      }
    }
    return total;
  }

 private:
  static constexpr bool kSoftmax = std::is_base_of<OfSoftmax, Criterion>::value;

  template <class Points>
  static NTKFAST_DEVICE Values weights_of(Points first) {
    return PointPairs<Points, kPairs, kStride>{first}(0);
  }
  static NTKFAST_DEVICE float sum_of(const Values& values) {
    float sum = 0;
    NTKFAST_UNROLL_DEVICE
    for (int i = 0; i < 2 * kPairs; ++i) sum += values.v[i];
    return sum;
  }
};

}  // namespace
}  // namespace ntkfast
