// RKD's passes over pairs of rows, one row of pairs (i, j), j > i, at a time. Before the sweep over triples they
// prepare the distances; after it they compute the distance term and the final gradients.
#pragma once

#include <cmath>
#include <limits>

#include "relational_rkd_triples.h"

namespace sftn::rkd {

// One row i of a matrix [B, stride], from the block of lanes that holds the diagonal.
struct PairRow {
  int64_t i, b;

  SFTN_INLINE int64_t first_block() const { return i / kLanes * kLanes; }
  SFTN_INLINE bool counts(int32_t j) const { return j > int32_t(i) && j < int32_t(b); }
};

// max(x, least); NaN stays NaN
template <class A>
SFTN_INLINE A at_least(A x, A least) {
  return x < least ? least : x;
}

// What is known of a network's pairs before the sweep.
struct PairRange {
  double sum = 0;                                                        // of d
  double least = std::numeric_limits<double>::infinity(), greatest = 0;  // D2 other than 0; NaN is in the sum alone

  void add(const PairRange& more) {
    sum += more.sum;
    least = std::min(least, more.least);
    greatest = std::max(greatest, more.greatest);
  }
};

// Fills the entries of `squared` and `low` without a pair.
template <class A>
SFTN_INLINE PairRange range_of_row_inline(PairRow row, A eps, A* squared, A* low) {
  constexpr A kInfinity = std::numeric_limits<A>::infinity();
  Lanes<A> sum(0), least(-kInfinity), greatest(0);
  for (int64_t block = row.first_block(); block < row.b; block += kLanes) {
    SFTN_LANES {
      const int64_t j = block + l;
      const bool counts = row.counts(int32_t(j));
      const A d2 = counts ? squared[j] : A(0), negative = d2 == 0 ? -kInfinity : -d2;
      squared[j] = d2;
      if constexpr (std::is_same_v<A, float>) low[j] = counts ? low[j] : A(0);
      sum.lane[l] += counts ? std::sqrt(at_least(d2, eps)) : A(0);
      least.lane[l] = negative > least.lane[l] ? negative : least.lane[l];
      greatest.lane[l] = d2 > greatest.lane[l] ? d2 : greatest.lane[l];
    }
  }
  return {sum.sum(), -double(least.max()), greatest.max()};
}

// Fills a row of `inverse` and `inverse_slope` from `squared`, where `unit` is that of the sides. If these are
// integers, `low` becomes them.
template <class A>
SFTN_INLINE void prepare_row_inline(PairRow row, A eps, double unit, bool integers, const A* squared, A* low,
                                    A* inverse, A* inverse_slope) {
  const A to_inverse = A(std::sqrt(0.5 * unit)), to_slope = A(0.5 * unit);
  for (int64_t block = row.first_block(); block < row.b; block += kLanes) {
    SFTN_LANES {
      const int64_t j = block + l;
      const A d2 = squared[j], length = std::sqrt(d2);
      const A n = d2 == 0 ? A(0) : A(1) / at_least(length, eps);
      inverse[j] = n * to_inverse;
      inverse_slope[j] = length > eps ? to_slope * n * n : A(0);
    }
    if constexpr (std::is_same_v<A, float>) {
      if (!integers) continue;
      const double scale = 1 / unit;
      SFTN_LANES {
        const int64_t j = block + l;
        low[j] = bit_cast<A>(static_cast<int32_t>((double(squared[j]) + double(low[j])) * scale + 0.5));
      }
    }
  }
}

// Sums over the pairs of a row.
struct PairSums {
  double distance = 0;              // h(r of the student - r of the teacher)
  double student = 0, teacher = 0;  // g r
  double angle = 0;                 // h(cos(i; j,j) of the student - of the teacher)
};

// The factors of one network's gradients.
template <class A>
struct PairScale {
  A inverse_mean;
  A distance;         // weight / (B^2 m)
  A mean_gr;          // sum g r / (B (B - 1)), with this network first in g's difference
  A triples, itself;  // 2 s weight / B^3, 2 weight / B^3
};

// cos(i; j,j): 1, except for equal or nearly equal rows.
template <class A>
SFTN_INLINE A cos_of_itself(A d2, A eps) {
  const A ratio = std::sqrt(d2) / eps;
  return ratio > A(1) ? A(1) : ratio * ratio;
}

// g(x) = min(max(x, -1), 1), with |x| and 1 compared as integers. NaN gives 1 or -1; the other factor of the loss keeps
// it.
template <class A>
SFTN_INLINE A clamp_one(A x) {
  const Bits<A> bits = bits_of(x), magnitude = bits & ~kSignBit<A>, one = bits_of(A(1));
  return bit_cast<A>((bits & kSignBit<A>) | (magnitude < one ? magnitude : one));
}

template <class A>
SFTN_INLINE PairSums sum_row_inline(PairRow row, A eps, A student_inverse_mean, A teacher_inverse_mean,
                                    const A* student_squared, const A* teacher_squared) {
  Lanes<A> distance(0), student(0), teacher(0), angle(0);
  for (int64_t block = row.first_block(); block < row.b; block += kLanes) {
    SFTN_LANES {
      const int64_t j = block + l;
      const A keep = row.counts(int32_t(j)) ? A(1) : A(0);
      const A s2 = student_squared[j], t2 = teacher_squared[j];
      const A s = keep * std::sqrt(at_least(s2, eps)) * student_inverse_mean;
      const A t = keep * std::sqrt(at_least(t2, eps)) * teacher_inverse_mean;
      const A x = s - t, g = clamp_one(x);
      distance.lane[l] += g * (x - A(0.5) * g);
      student.lane[l] += g * s;
      teacher.lane[l] += g * t;
      const A y = cos_of_itself(s2, eps) - cos_of_itself(t2, eps);
      angle.lane[l] += y * (y - A(0.5) * y);
    }
  }
  return {distance.sum(), student.sum(), teacher.sum(), angle.sum()};
}

// One network's gradients of the pairs of row i, from the sums of the sweep.
template <class A>
SFTN_INLINE void finish_row_inline(PairRow row, A eps, const PairScale<A>& scale, A other_inverse_mean,
                                   const A* squared, const A* other_squared,
                                   const A* swept,  // null without angles
                                   A* out) {
  for (int64_t block = row.first_block(); block < row.b; block += kLanes) {
    SFTN_LANES {
      const int64_t j = block + l;
      const A d2 = squared[j], other2 = other_squared[j], d = std::sqrt(at_least(d2, eps));
      const A g = clamp_one(d * scale.inverse_mean - std::sqrt(at_least(other2, eps)) * other_inverse_mean);
      out[j] = d2 < eps ? A(0) : scale.distance * (g - scale.mean_gr) / d;
    }
    if (!swept) continue;
    SFTN_LANES {
      const int64_t j = block + l;
      const A d2 = squared[j], x = cos_of_itself(d2, eps) - cos_of_itself(other_squared[j], eps);
      const A itself = d2 != 0 && std::sqrt(d2) <= eps ? x / eps / eps : A(0);
      out[j] += scale.triples * swept[j] + scale.itself * itself;
    }
  }
}

}  // namespace sftn::rkd
