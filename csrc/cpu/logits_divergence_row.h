// The passes over a row of a divergence, in float or double; ../logits_divergence.h numbers the steps.
#pragma once

#include <cmath>

#include "chunk.h"
#include "exp.h"
#include "log.h"

#define SFTN_TERM SFTN_INLINE
#include "../logits_divergence_terms.h"

namespace sftn {

// The functions that the terms need; see ../logits_divergence_terms.h.
struct CpuMath {
  template <class A>
  SFTN_INLINE static A exp(A y) {
    return fast_exp2(y * A(kLog2E));
  }
  template <class A>
  SFTN_INLINE static A exp_remainder(A y) {
    return sftn::exp_remainder(y);
  }
  template <class A>
  SFTN_INLINE static A log(A r, A r_less_1) {
    return fast_log(r, r_less_1);
  }
};

// Mean and unbiased standard deviation of a row.
struct Moments {
  double mean, deviation;
};

template <class A>
SFTN_INLINE Moments moments_inline(const A* row, int64_t c) {
  const A first = row[0];
  double sum = 0, squares = 0;
  for (int64_t begin = 0; begin < c; begin += kChunk) {
    Lanes<A> of(0);
    const int64_t end = std::min(begin + kChunk, c), whole = begin + (end - begin) / kLanes * kLanes;
    for (int64_t j = begin; j < whole; j += kLanes) SFTN_LANES of.lane[l] += row[j + l] - first;
    for (int64_t j = whole; j < end; ++j) sum += row[j] - first;
    sum += of.sum();
  }
  const double mean = sum / c;
  const A shift = A(mean);
  double rest = 0;  // what the rounding of the mean leaves
  for (int64_t begin = 0; begin < c; begin += kChunk) {
    Lanes<A> of(0), of_rest(0);
    const int64_t end = std::min(begin + kChunk, c), whole = begin + (end - begin) / kLanes * kLanes;
    for (int64_t j = begin; j < whole; j += kLanes) {
      SFTN_LANES {
        const A x = (row[j + l] - first) - shift;
        of.lane[l] += x * x;
        of_rest.lane[l] += x;
      }
    }
    for (int64_t j = whole; j < end; ++j) {
      const double x = (row[j] - first) - shift;
      squares += x * x;
      rest += x;
    }
    squares += of.sum();
    rest += of_rest.sum();
  }
  rest /= c;
  const double variance = (squares - c * rest * rest) / std::max<int64_t>(c - 1, 1);
  return {double(first) + shift + rest, std::sqrt(std::max(0.0, variance))};
}

// How the scaled logits of a pair are computed from its rows: `a` and `b` are natural, a2 and b2 to base 2.
template <class A>
struct PairRates {
  A a, b, a2, b2;
  A both, of_student, of_teacher;  // both = min(a, b); the others are what is missing to a and -b

  PairRates(double a, double b)
      : a(A(a)),
        b(A(b)),
        a2(A(a * kLog2E)),
        b2(A(b * kLog2E)),
        both(A(std::min(a, b))),
        of_student(A(a - std::min(a, b))),
        of_teacher(A(std::min(a, b) - b)) {}

  // Of logits less their maxima: a student - b teacher. Where rates and logits are near each other, only differences
  // are rounded. -inf is held, because its product with 0 would be NaN.
  SFTN_INLINE A difference(A student, A teacher) const {
    constexpr A kLowest = A(-1e25);
    const A held_student = student > kLowest ? student : kLowest, held_teacher = teacher > kLowest ? teacher : kLowest;
    return (student - teacher) * both + (held_student * of_student + held_teacher * of_teacher);
  }
};

// The sums of step 3.
template <class A>
struct PairSums {
  A s_max, t_max;
  double s_z, t_z;
  double mean, log_sum;
};

template <class A>
SFTN_INLINE A finite_maximum(const A* row, int64_t c) {
  constexpr A kNone = -std::numeric_limits<A>::infinity();
  Tail<A> tail;
  Lanes<A> highest(kNone);
  const ChunkView<A> view(row, c, tail);
  for (int64_t b = 0; b < view.blocks(); ++b) {
    const A* x = view.block(b);
    SFTN_LANES highest.lane[l] = x[l] > highest.lane[l] ? x[l] : highest.lane[l];
  }
  const A result = highest.max();
  return result == kNone ? A(0) : result;
}

// log1p of sum p (exp(d - mean) - 1), or -1 if the row is not near.
template <class A>
SFTN_INLINE double near_log_sum(const A* d, int64_t c, const PairSums<A>& sums, const A* t_e) {
  Lanes<A> far(0);
  const A mean = A(sums.mean);
  double total = 0;
  for (int64_t begin = 0; begin < c; begin += kChunk) {
    const int64_t end = std::min(begin + kChunk, whole_blocks(c));
    Lanes<A> first(0), rest(0);
    for (int64_t j = begin; j < end; j += kLanes) {
      SFTN_LANES {
        const A given = d[j + l] - mean;
        const A y = given == given ? given : A(0);  // NaN for a class that both rule out
        const A distance = y < 0 ? -y : y;
        far.lane[l] = distance > far.lane[l] ? distance : far.lane[l];
        first.lane[l] += t_e[j + l] * y;
        rest.lane[l] += t_e[j + l] * exp_remainder(y);
      }
    }
    total += double(first.sum()) + rest.sum();
  }
  return far.max() <= A(kNearRatio) ? std::log1p(total / sums.t_z) : -1;
}

// Leaves the exponentials of both rows in s_e and t_e, and the differences in d, whole blocks.
template <bool kOneRate, class A>
SFTN_INLINE PairSums<A> pair_sums_inline(const A* student, const A* teacher, int64_t c, const PairRates<A>& rates,
                                         A* s_e, A* t_e, A* d) {
  Tail<A> s_tail, t_tail;
  PairSums<A> sums{finite_maximum(student, c), finite_maximum(teacher, c), 0, 0, 0, 0};
  const A s_max = sums.s_max, t_max = sums.t_max;
  const PairRates<A> by = rates;
  double dot = 0;
  for (int64_t begin = 0; begin < c; begin += kChunk) {
    const int64_t size = std::min(kChunk, c - begin);
    const ChunkView<A> s(student + begin, size, s_tail), t(teacher + begin, size, t_tail);
    Lanes<A> s_z(0), t_z(0), of_dot(0);
    for (int64_t b = 0; b < s.blocks(); ++b) {
      const A *of_s = s.block(b), *of_t = t.block(b);
      A *to_s = s_e + begin + b * kLanes, *to_t = t_e + begin + b * kLanes, *to_d = d + begin + b * kLanes;
      SFTN_LANES {
        const A x_s = of_s[l] - s_max, x_t = of_t[l] - t_max;
        const A e_s = fast_exp2(x_s * by.a2), e_t = fast_exp2(x_t * by.b2);
        to_s[l] = e_s;
        to_t[l] = e_t;
        s_z.lane[l] += e_s;
        t_z.lane[l] += e_t;
        const A difference = kOneRate ? (x_s - x_t) * by.both : by.difference(x_s, x_t);
        to_d[l] = difference;
        of_dot.lane[l] += e_t == 0 ? A(0) : e_t * difference;
      }
    }
    sums.s_z += s_z.sum();
    sums.t_z += t_z.sum();
    dot += of_dot.sum();
  }
  const double log_ratio = std::log(sums.s_z / sums.t_z);
  sums.mean = double(A(dot / sums.t_z));
  if (!std::isfinite(sums.mean)) sums.mean = 0;
  sums.log_sum = log_ratio - sums.mean;
  if (sums.log_sum < kNearLogSum) {
    const double near = near_log_sum(d, c, sums, t_e);
    if (near > -1) sums.log_sum = near;
  }
  return sums;
}

// Sum of exp(rate (x - max)); `rate` is to base 2. Leaves the exponentials in e, whole blocks, unless it is null.
template <class A>
SFTN_INLINE double exp_sum_inline(const A* row, int64_t c, A max, A rate, A* e) {
  Tail<A> tail;
  alignas(64) A unwanted[kLanes];
  double sum = 0;
  for (int64_t begin = 0; begin < c; begin += kChunk) {
    const ChunkView<A> view(row + begin, std::min(kChunk, c - begin), tail);
    Lanes<A> of(0);
    for (int64_t b = 0; b < view.blocks(); ++b) {
      const A* x = view.block(b);
      A* to = e == nullptr ? unwanted : e + begin + b * kLanes;
      SFTN_LANES {
        to[l] = fast_exp2((x[l] - max) * rate);
        of.lane[l] += to[l];
      }
    }
    sum += of.sum();
  }
  return sum;
}

// Copies of both rows with -inf instead of the classes to which the teacher gives `limit` or more.
template <class A>
SFTN_INLINE void keep_below_inline(const A* student, const A* teacher, int64_t c, A limit, A* s_kept, A* t_kept) {
  constexpr A kMasked = -std::numeric_limits<A>::infinity();
#pragma omp simd
  for (int64_t j = 0; j < c; ++j) s_kept[j] = teacher[j] < limit ? student[j] : kMasked;
#pragma omp simd
  for (int64_t j = 0; j < c; ++j) t_kept[j] = teacher[j] < limit ? teacher[j] : kMasked;
}

// The first place of a value in a row, which has it.
template <class A>
SFTN_INLINE int64_t place_inline(const A* row, int64_t c, A value) {
  int64_t j = 0;
  for (; j + kLanes <= c; j += kLanes) {
    int found = 0;
#pragma omp simd reduction(| : found)
    for (int64_t l = 0; l < kLanes; ++l) found |= row[j + l] == value;
    if (found) break;
  }
  while (j < c - 1 && row[j] != value) ++j;
  return j;
}

struct RowTerms {
  double value, slope;
};

// Step 4: the sums of values and slopes. Leaves q in place of s_e, and the slopes in place of t_e.
template <class Term, class A>
SFTN_INLINE RowTerms terms_inline(const Term& term, const A* student, const A* teacher, int64_t c,
                                  const PairRates<A>& rates, const PairSums<A>& sums, const A* d, A* s_e, A* t_e) {
  Tail<A> s_tail, t_tail;
  const A s_inverse = A(1 / sums.s_z), t_inverse = A(1 / sums.t_z), mean = A(sums.mean), log_sum = A(sums.log_sum);
  const A s_log = A(std::log(sums.s_z)), t_log = A(std::log(sums.t_z));
  const A s_max = sums.s_max, t_max = sums.t_max;
  const PairRates<A> by = rates;
  const Term of_class = term;
  RowTerms row{0, 0};
  for (int64_t begin = 0; begin < c; begin += kChunk) {
    const int64_t size = std::min(kChunk, c - begin);
    const ChunkView<A> s(student + begin, size, s_tail), t(teacher + begin, size, t_tail);
    Lanes<A> value(0), slope(0);
    for (int64_t b = 0; b < s.blocks(); ++b) {
      const A *of_s = s.block(b), *of_t = t.block(b);
      const A* of_d = d + begin + b * kLanes;
      A *q = s_e + begin + b * kLanes, *w = t_e + begin + b * kLanes;
      SFTN_LANES {
        const A x_s = of_s[l] - s_max, x_t = of_t[l] - t_max;
        const ClassPair<A> pair{w[l] * t_inverse, q[l] * s_inverse, x_t * by.b - t_log, x_s * by.a - s_log,
                                (of_d[l] - mean) - log_sum};
        const ClassTerm<A> of = of_class.template of<CpuMath>(pair);
        value.lane[l] += of.value;
        slope.lane[l] += of.slope;
        q[l] = pair.q;
        w[l] = of.slope;
      }
    }
    row.value += value.sum();
    row.slope += slope.sum();
  }
  return row;
}

// Step 7 without the label's term and a varying deviation: g = factor (w - slope q).
template <class A>
SFTN_INLINE void gradient_inline(int64_t c, A factor, A slope, const A* w, const A* q, A* g) {
#pragma omp simd
  for (int64_t j = 0; j < c; ++j) g[j] = factor * (w[j] - slope * q[j]);
}

// g -= label r
template <class A>
SFTN_INLINE void label_gradient_inline(int64_t c, A label, const A* r, A* g) {
#pragma omp simd
  for (int64_t j = 0; j < c; ++j) g[j] -= label * r[j];
}

// Adds the derivative of the deviation to a gradient.
template <class A>
SFTN_INLINE void standardize_gradient_inline(const A* row, int64_t c, const Moments& moments, A* g) {
  if (moments.deviation == 0) return;
  const A first = row[0], mean = A(moments.mean - double(first));
  double dot = 0;
  for (int64_t begin = 0; begin < c; begin += kChunk) {
    Lanes<A> of(0);
    const int64_t end = std::min(begin + kChunk, c), whole = begin + (end - begin) / kLanes * kLanes;
    for (int64_t j = begin; j < whole; j += kLanes) SFTN_LANES of.lane[l] += g[j + l] * ((row[j + l] - first) - mean);
    for (int64_t j = whole; j < end; ++j) dot += double(g[j]) * ((row[j] - first) - mean);
    dot += of.sum();
  }
  const A factor = A(dot / (double(c - 1) * moments.deviation * (moments.deviation + kStandardEps)));
#pragma omp simd
  for (int64_t j = 0; j < c; ++j) g[j] -= ((row[j] - first) - mean) * factor;
}

}  // namespace sftn
