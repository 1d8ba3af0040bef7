// The passes over a row of a divergence, in float or double; ../logits_divergence.h numbers the steps.
#pragma once

#include <cmath>
#include <limits>

#include "block.h"
#include "exp.h"
#include "log.h"

#define SFTN_TERM SFTN_INLINE
#define SFTN_SELECT select
#include "../logits_divergence_terms.h"

namespace sftn {

// The functions that the terms need; see ../logits_divergence_terms.h.
struct CpuMath {
  template <class V>
  SFTN_INLINE static V exp(V y) {
    return fast_exp2(y * V(kLog2E));
  }
  template <class V>
  SFTN_INLINE static V exp_remainder(V y) {
    return sftn::exp_remainder(y);
  }
  template <class V>
  SFTN_INLINE static V log(V r, V r_less_1) {
    return fast_log(r, r_less_1);
  }
  template <class V>
  SFTN_INLINE static V log(V r) {
    return fast_log(r);
  }
  template <class V, class A>
  SFTN_INLINE static V over(V x, A divisor) {
    return x * (A(1) / divisor);
  }
};

template <int kBytes, class A>
SFTN_INLINE auto is_near(Block<kBytes, A> y) {
  return (y <= A(kNearRatio)) & (y >= A(-kNearRatio));
}

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
  // NaN of logits that are not finite, or whose squares are not: a rate of 0 would hide them
  const double infinity = std::numeric_limits<double>::infinity();
  return {double(first) + shift + rest, variance < infinity ? std::sqrt(std::max(0.0, variance)) : infinity - infinity};
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
  template <class V>
  SFTN_INLINE V difference(V student, V teacher) const {
    constexpr A kLowest = A(-1e25);
    const V held_student = select(student > kLowest, student, V(kLowest));
    const V held_teacher = select(teacher > kLowest, teacher, V(kLowest));
    return (student - teacher) * both + (held_student * of_student + held_teacher * of_teacher);
  }
};

// The sums of step 3.
template <class A>
struct PairSums {
  A s_max, t_max;
  double s_z, t_z;
  double mean, log_sum;
  double kl;  // log_sum of the mean before it is rounded, infinite where the mean is

  SFTN_INLINE bool is_far() const { return log_sum > kFarLogSum; }
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
template <int kBytes, class A>
SFTN_INLINE double near_log_sum(const A* d, int64_t c, const PairSums<A>& sums, const A* t_e) {
  using V = Block<kBytes, A>;
  V lowest = A(0), highest = A(0);
  const A mean = A(sums.mean);
  double total = 0;
  for (int64_t begin = 0; begin < c; begin += kChunk) {
    const int64_t end = std::min(begin + kChunk, whole_blocks(c));
    V first = A(0), rest = A(0);
    for (int64_t j = begin; j < end; j += kLanes) {
      const V given = V::load(d + j) - mean, e = V::load(t_e + j);
      const V y = select(given == given, given, V(0));  // NaN for a class that both rule out
      lowest = select(y < lowest, y, lowest);
      highest = select(y > highest, y, highest);
      first += e * y;
      rest += e * exp_remainder(y);
    }
    total += double(sum_of(first)) + sum_of(rest);
  }
  const bool near = max_of(highest) <= A(kNearRatio) && max_of(-lowest) <= A(kNearRatio);
  return near ? std::log1p(total / sums.t_z) : -1;
}

// Rows [c] that are fetched meanwhile: the next pair, whose maxima would wait for memory, and the row of the gradient.
// The pair is read once, so it need not replace anything in the second-level cache.
template <class A>
struct RowsAhead {
  const A *student, *teacher, *grad;
};

// Leaves the exponentials of both rows in s_e and t_e, and the differences in d, whole blocks.
template <int kBytes, bool kOneRate, class A>
SFTN_INLINE PairSums<A> pair_sums_inline(const A* student, const A* teacher, int64_t c, const PairRates<A>& rates,
                                         const RowsAhead<A>& rows_ahead, A* s_e, A* t_e, A* d) {
  using V = Block<kBytes, A>;
  Tail<A> s_tail, t_tail;
  PairSums<A> sums{finite_maximum(student, c), finite_maximum(teacher, c), 0, 0, 0, 0, 0};
  const A s_max = sums.s_max, t_max = sums.t_max;
  const PairRates<A> by = rates;
  const RowsAhead<A> ahead = rows_ahead;
  double dot = 0;
  for (int64_t begin = 0; begin < c; begin += kChunk) {
    const int64_t size = std::min(kChunk, c - begin);
    const ChunkView<A> s(student + begin, size, s_tail), t(teacher + begin, size, t_tail);
    // A loop for each row: the registers of AVX2 hold one polynomial and the sums.
    V s_z = A(0), t_z = A(0), of_dot = A(0);
    for (int64_t b = 0; b < s.blocks(); ++b) {
      __builtin_prefetch(ahead.student + begin + b * kLanes, 0, 0);
      __builtin_prefetch(ahead.grad + begin + b * kLanes, 1);
      const V of_s = fast_exp2((V::load(s.block(b)) - s_max) * by.a2);
      of_s.store(s_e + begin + b * kLanes);
      s_z += of_s;
    }
    for (int64_t b = 0; b < t.blocks(); ++b) {
      const int64_t at = begin + b * kLanes;
      __builtin_prefetch(ahead.teacher + at, 0, 0);
      const V x_s = V::load(s.block(b)) - s_max, x_t = V::load(t.block(b)) - t_max;
      const V of_t = fast_exp2(x_t * by.b2);
      of_t.store(t_e + at);
      t_z += of_t;
      const V difference = kOneRate ? (x_s - x_t) * by.both : by.difference(x_s, x_t);
      difference.store(d + at);
      of_dot += select(of_t == 0, V(0), of_t * difference);
    }
    sums.s_z += sum_of(s_z);
    sums.t_z += sum_of(t_z);
    dot += sum_of(of_dot);
  }
  const double log_ratio = std::log(sums.s_z / sums.t_z);
  sums.kl = log_ratio - dot / sums.t_z;
  sums.mean = double(A(dot / sums.t_z));
  if (!std::isfinite(sums.mean)) sums.mean = 0;
  sums.log_sum = log_ratio - sums.mean;
  if (sums.log_sum < kNearLogSum) {
    const double near = near_log_sum<kBytes>(d, c, sums, t_e);
    if (near > -1) sums.log_sum = near;
  }
  return sums;
}

// Sum of exp(rate (x - max)); `rate` is to base 2. Leaves the exponentials in e, whole blocks, unless it is null.
template <int kBytes, class A>
SFTN_INLINE double exp_sum_inline(const A* row, int64_t c, A max, A rate, A* e) {
  using V = Block<kBytes, A>;
  Tail<A> tail;
  double sum = 0;
  for (int64_t begin = 0; begin < c; begin += kChunk) {
    const ChunkView<A> view(row + begin, std::min(kChunk, c - begin), tail);
    V of = A(0);
    for (int64_t b = 0; b < view.blocks(); ++b) {
      const V one = fast_exp2((V::load(view.block(b)) - max) * rate);
      if (e != nullptr) one.store(e + begin + b * kLanes);
      of += one;
    }
    sum += sum_of(of);
  }
  return sum;
}

// Sum of e (x - max), of a row's exponentials in whole blocks.
template <int kBytes, class A>
SFTN_INLINE double logit_sum_inline(const A* row, int64_t c, A max, const A* e) {
  using V = Block<kBytes, A>;
  Tail<A> tail;
  double sum = 0;
  for (int64_t begin = 0; begin < c; begin += kChunk) {
    const ChunkView<A> view(row + begin, std::min(kChunk, c - begin), tail);
    V of = A(0);
    for (int64_t b = 0; b < view.blocks(); ++b) {
      const V weight = V::load(e + begin + b * kLanes), x = V::load(view.block(b)) - max;
      of += select(weight == 0, V(0), weight * x);
    }
    sum += sum_of(of);
  }
  return sum;
}

// Sum of e^power, of exponentials in whole blocks.
template <int kBytes, class A>
SFTN_INLINE double power_sum_inline(const A* e, int64_t c, int power) {
  using V = Block<kBytes, A>;
  double sum = 0;
  for (int64_t begin = 0; begin < c; begin += kChunk) {
    const int64_t end = std::min(begin + kChunk, whole_blocks(c));
    V of = A(0);
    for (int64_t j = begin; j < end; j += kLanes) {
      V square = V::load(e + j), result = power & 1 ? square : V(1);
      for (int bits = power >> 1; bits != 0; bits >>= 1) {
        square *= square;
        if (bits & 1) result *= square;
      }
      of += result;
    }
    sum += sum_of(of);
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

// Step 4: the sums of values and slopes. Leaves the slopes in place of t_e.
template <int kBytes, class Term, class A>
SFTN_INLINE RowTerms terms_inline(const Term& term, const A* student, const A* teacher, int64_t c,
                                  const PairRates<A>& rates, const PairSums<A>& sums, const A* d, const A* s_e,
                                  A* t_e) {
  using V = Block<kBytes, A>;
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
    V value = A(0), slope = A(0);
    for (int64_t b = 0; b < s.blocks(); ++b) {
      const int64_t at = begin + b * kLanes;
      const V x_s = V::load(s.block(b)) - s_max, x_t = V::load(t.block(b)) - t_max;
      const ClassPair<V> pair{V::load(t_e + at) * t_inverse, V::load(s_e + at) * s_inverse, x_t * by.b - t_log,
                              x_s * by.a - s_log, (V::load(d + at) - mean) - log_sum};
      const ClassTerm<V> of = of_class.template of<CpuMath>(pair);
      value += of.value;
      slope += of.slope;
      of.slope.store(t_e + at);
    }
    row.value += sum_of(value);
    row.slope += sum_of(slope);
  }
  return row;
}

// Step 7 of a far row whose slopes are q - p: g = s_factor s_e - t_factor t_e.
template <class A>
SFTN_INLINE void difference_gradient_inline(int64_t c, A s_factor, A t_factor, const A* s_e, const A* t_e, A* g) {
#pragma omp simd
  for (int64_t j = 0; j < c; ++j) g[j] = s_factor * s_e[j] - t_factor * t_e[j];
}

// Step 7 without the label's term and a varying deviation: g = factor (w - slope s_e), of a slope that is divided by
// s_z.
template <class A>
SFTN_INLINE void gradient_inline(int64_t c, A factor, A slope, const A* w, const A* s_e, A* g) {
#pragma omp simd
  for (int64_t j = 0; j < c; ++j) g[j] = factor * (w[j] - slope * s_e[j]);
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
