// Loss and gradient of the difference of two rows of Q values, both scaled to norm 1. A row is a sample's attention, in
// the accumulator's type, or its whole factor in memory order.
#pragma once

#include "../features_attention.h"
#include "features_attention_map.h"

namespace sftn::attention {

// phi'(d)
template <bool kAbsolute, class A>
SFTN_INLINE A slope_of_difference(A d) {
  if constexpr (kAbsolute) return A(d > 0) - A(d < 0);
  return 2 * d;
}

template <class T>
SFTN_INLINE double sum_of_squares(const T* row, int64_t q, Staging<T>& staging) {
  using A = accumulator_t<T>;
  double sum = 0;
  for (int64_t begin = 0; begin < q; begin += kTile) {
    const int64_t size = std::min(kTile, q - begin);
    sum += sum_of_powers<2>(staging.read(0, row + begin, size), size, A(2));
  }
  return sum;
}

// Factors that scale rows to norm 1, from a sample's statistics. Both passes use them and so see the same differences.
template <class A>
struct UnitRows {
  A by_norm_s, by_norm_t, ratio;

  SFTN_INLINE explicit UnitRows(const A* stats)
      : by_norm_s(1 / stats[0]), by_norm_t(1 / stats[1]), ratio(stats[0] / stats[1]) {
    constexpr A kMax = std::numeric_limits<A>::max();
    if (ratio > kMax) ratio = kMax;  // an infinite ratio times zero would be NaN
  }

  // y_s - y_t. Exactly 0 for equal rows, also if the compiler fuses a product and a difference into one rounding.
  SFTN_INLINE A difference(A a_s, A a_t) const { return (a_s - a_t * ratio) * by_norm_s; }
};

struct DifferenceSums {
  double loss = 0, dot_s = 0, dot_t = 0;  // sums of phi(d), phi'(d) y_s, phi'(d) y_t
};

template <bool kAbsolute, class T, class A>
SFTN_INLINE DifferenceSums difference_sums(const T* s, const T* t, int64_t q, const UnitRows<A>& unit,
                                           Staging<T>& staging) {
  DifferenceSums sums;
  for (int64_t begin = 0; begin < q; begin += kTile) {
    const int64_t size = std::min(kTile, q - begin), whole = size / kLanes * kLanes;
    const A *a = staging.read(0, s + begin, size), *b = staging.read(1, t + begin, size);
    Lanes<A> loss(0), dot_s(0), dot_t(0);
    const auto add = [&](int64_t j, int64_t l) __attribute__((always_inline)) {
      const A d = unit.difference(a[j], b[j]), slope = slope_of_difference<kAbsolute>(d);
      loss.lane[l] += kAbsolute ? std::fabs(d) : d * d;
      dot_s.lane[l] += slope * (a[j] * unit.by_norm_s);
      dot_t.lane[l] += slope * (b[j] * unit.by_norm_t);
    };
    for (int64_t j = 0; j < whole; j += kLanes) SFTN_LANES add(j + l, l);
    for (int64_t j = whole; j < size; ++j) add(j, j - whole);
    sums.loss += loss.sum();
    sums.dot_s += dot_s.sum();
    sums.dot_t += dot_t.sum();
  }
  return sums;
}

// Computes a sample's statistics [4] and returns the sum of phi(d). A norm of NaN stays NaN.
template <class T, class A>
SFTN_INLINE double compare_rows_inline(const T* s, const T* t, int64_t q, bool absolute, A* stats,
                                       Staging<T>& staging) {
  const double norm_s = std::sqrt(sum_of_squares(s, q, staging)), norm_t = std::sqrt(sum_of_squares(t, q, staging));
  const bool floored_s = norm_s < kNormFloor, floored_t = norm_t < kNormFloor;
  stats[0] = A(floored_s ? kNormFloor : norm_s);
  stats[1] = A(floored_t ? kNormFloor : norm_t);
  const UnitRows<A> unit(stats);
  const DifferenceSums sums =
      absolute ? difference_sums<true>(s, t, q, unit, staging) : difference_sums<false>(s, t, q, unit, staging);
  stats[2] = floored_s ? A(0) : A(sums.dot_s);
  stats[3] = floored_t ? A(0) : A(sums.dot_t);
  return sums.loss;
}

template <bool kTeacher, bool kAbsolute, class T, class A>
SFTN_INLINE void row_gradient(const T* s, const T* t, int64_t q, const A* stats, A scale, T* to, Staging<T>& staging) {
  const UnitRows<A> unit(stats);
  const A factor = kTeacher ? -scale * unit.by_norm_t : scale * unit.by_norm_s;
  const A along = kTeacher ? stats[3] * unit.by_norm_t : stats[2] * unit.by_norm_s;
  for (int64_t begin = 0; begin < q; begin += kTile) {
    const int64_t size = std::min(kTile, q - begin);
    const A *a = staging.read(0, s + begin, size), *b = staging.read(1, t + begin, size);
    A* out = staging.open(2, to + begin);
#pragma omp simd
    for (int64_t j = 0; j < size; ++j) {
      const A slope = slope_of_difference<kAbsolute>(unit.difference(a[j], b[j]));
      out[j] = factor * (slope - (kTeacher ? b[j] : a[j]) * along);
    }
    staging.write(2, to + begin, size);
  }
}

// scale * dloss / da of one of the two rows, without the factor 1 / (N Q).
template <class T, class A>
SFTN_INLINE void compare_rows_backward_inline(const T* s, const T* t, int64_t q, bool absolute, bool teacher,
                                              const A* stats, A scale, T* to, Staging<T>& staging) {
  if (teacher) {
    absolute ? row_gradient<true, true>(s, t, q, stats, scale, to, staging)
             : row_gradient<true, false>(s, t, q, stats, scale, to, staging);
  } else {
    absolute ? row_gradient<false, true>(s, t, q, stats, scale, to, staging)
             : row_gradient<false, false>(s, t, q, stats, scale, to, staging);
  }
}

}  // namespace sftn::attention
