// One row of the losses on logits, forward and backward, in float or double; ../logits.h has the formulas.
//
// A row is read from memory once: its maximum, then its sums, chunk by chunk while the row is in the cache.
#pragma once

#include <cmath>

#include "../logits.h"
#include "chunk.h"
#include "exp.h"

namespace sftn {

// The inputs of a row.
template <class A>
struct LogitsRow {
  const A* teacher;          // [C]
  const A* const* students;  // K of [C]
  // [1 + K] offsets to the next row, which is prefetched because its maximum would wait for memory.
  const int64_t* to_next;
  int64_t y;  // class, -1 without
};

// How exp(x) follows from exp(x / T): not needed, computed separately, or by 0, 1 or 2 squarings for T = 1, 2 or 4.
// Known at compile time, because an inner loop of squarings would take half of the time.
constexpr int kNotAtOne = -2, kAnew = -1;

template <class F>
SFTN_INLINE void with_squarings(bool at_one, double temperature, F f) {
  if (!at_one) return f(Int<kNotAtOne>{});
  if (temperature == 1) return f(Int<0>{});
  if (temperature == 2) return f(Int<1>{});
  if (temperature == 4) return f(Int<2>{});
  f(Int<kAnew>{});
}

// exp(x), from e = exp(x / T)
template <int kSquarings, class A>
SFTN_INLINE A exp_at_one(A x, A e) {
  if constexpr (kSquarings == kNotAtOne) return A(0);
  if constexpr (kSquarings == kAnew) return fast_exp2(x * A(kLog2E));
  if constexpr (kSquarings == 1) return e * e;
  if constexpr (kSquarings == 2) return (e * e) * (e * e);
  return e;
}

// ---- forward ----

// Sums of one row, relative to its maximum.
template <class A>
struct RowSums {
  A max = 0;
  double z = 0;      // sum exp((x - max) / T)
  double z1 = 0;     // sum exp(x - max)
  double below = 0;  // sum (x - max), for label smoothing
  double dot = 0;    // students: sum of weight * difference, see add_student
};

template <class A>
SFTN_INLINE A max_of(const A* row, int64_t c) {
  Tail<A> tail;
  Lanes<A> max(-std::numeric_limits<A>::infinity());
  const ChunkView<A> view(row, c, tail);
  for (int64_t b = 0; b < view.blocks(); ++b) {
    const A* x = view.block(b);
    SFTN_LANES max.lane[l] = x[l] > max.lane[l] ? x[l] : max.lane[l];
  }
  return max.max();
}

template <class A>
SFTN_INLINE void add_below(RowSums<A>& sums, const A* x, int64_t size) {
  double below = 0;
  for (int64_t j = 0; j < size; ++j) below += x[j] - sums.max;
  sums.below += below;
}

// Adds a chunk of the teacher to its sums and leaves exp((t - max) / T) in `weights`. `rate` is log2(e) / T.
template <int kSquarings, class A>
SFTN_INLINE void add_teacher(RowSums<A>& sums, const ChunkView<A>& view, A rate, A* weights, int64_t to_next) {
  Lanes<A> z(0), z1(0);
  const A max = sums.max;
  for (int64_t b = 0; b < view.blocks(); ++b) {
    const A* t = view.block(b);
    A* e = weights + b * kLanes;
    __builtin_prefetch(t + to_next);
    SFTN_LANES {
      const A x = t[l] - max, e_l = fast_exp2(x * rate);
      e[l] = e_l;
      z.lane[l] += e_l;
      z1.lane[l] += exp_at_one<kSquarings>(x, e_l);
    }
  }
  sums.z += z.sum();
  sums.z1 += z1.sum();
}

// Adds a chunk of a student to its sums, and to its dot the sum over classes of weight * difference of the two logits
// less their maxima: the teacher's weights and t - s, or the student's and s - t. A weight of 0 contributes nothing,
// however large the difference.
template <int kSquarings, bool kStudentWeighs, class A>
SFTN_INLINE void add_student(RowSums<A>& sums, const ChunkView<A>& view, A rate, const ChunkView<A>& teacher, A t_max,
                             const A* t_weights, int64_t to_next) {
  Lanes<A> z(0), z1(0), dot(0);
  const A max = sums.max;
  for (int64_t b = 0; b < view.blocks(); ++b) {
    const A *s = view.block(b), *t = teacher.block(b), *t_e = t_weights + b * kLanes;
    __builtin_prefetch(s + to_next);
    SFTN_LANES {
      const A x = s[l] - max, e = fast_exp2(x * rate);
      z.lane[l] += e;
      z1.lane[l] += exp_at_one<kSquarings>(x, e);
      const A apart = (t[l] - t_max) - x, weight = kStudentWeighs ? e : t_e[l];
      dot.lane[l] += weight == 0 ? A(0) : weight * (kStudentWeighs ? -apart : apart);
    }
  }
  sums.z += z.sum();
  sums.z1 += z1.sum();
  sums.dot += dot.sum();
}

// The sums of the teacher and of each student, [1 + K].
template <int kSquarings, bool kStudentWeighs, class A>
SFTN_INLINE void row_sums(const LogitsInput& in, const LogitsRow<A>& row, bool teacher_ce, bool smooth,
                          RowSums<A>* sums) {
  const int64_t k_count = in.k();
  const A rate = A(kLog2E / in.options.temperature);
  RowSums<A>& teacher = sums[0];
  RowSums<A>* students = sums + 1;
  Tail<A> t_tail, s_tail;
  alignas(64) A t_weights[kChunk];

  teacher = {max_of(row.teacher, in.c)};
  for (int64_t k = 0; k < k_count; ++k) students[k] = {max_of(row.students[k], in.c)};
  for (int64_t begin = 0; begin < in.c; begin += kChunk) {
    const int64_t size = std::min(kChunk, in.c - begin);
    const ChunkView<A> t(row.teacher + begin, size, t_tail);
    if (teacher_ce) {
      add_teacher<kSquarings>(teacher, t, rate, t_weights, row.to_next[0]);
    } else {
      add_teacher<kNotAtOne>(teacher, t, rate, t_weights, row.to_next[0]);
    }
    if (smooth) add_below(teacher, row.teacher + begin, size);
    for (int64_t k = 0; k < k_count; ++k) {
      const ChunkView<A> s(row.students[k] + begin, size, s_tail);
      add_student<kSquarings, kStudentWeighs>(students[k], s, rate, t, teacher.max, t_weights, row.to_next[1 + k]);
      if (smooth) add_below(students[k], row.students[k] + begin, size);
    }
  }
}

// log(1 + e) - e, which is of second order
inline double log1p_remainder(double e) {
  if (std::abs(e) > 1.0 / 128) return std::log1p(e) - e;
  double p = 1.0 / 9;
  for (int n = 8; n >= 2; --n) p = 1.0 / n - e * p;
  return -e * e * p;
}

// CE = logsumexp(x) - (1 - smoothing) x_y - smoothing mean(x), from differences to the maximum
template <class A>
SFTN_INLINE double cross_entropy(const RowSums<A>& sums, A at_target, double log_z1, double smoothing, int64_t c) {
  const double loss = log_z1 - (1 - smoothing) * (double(at_target) - double(sums.max));
  return smoothing == 0 ? loss : loss - smoothing * sums.below / c;
}

// For student and teacher near each other: their divergence, and the mean around which it was summed.
struct NearRow {
  double kl = -1, mean = 0;
};

// `z` is the sum of the weighting distribution's exponentials, `mean` the mean difference. kl is -1 if not near.
template <bool kStudentWeighs, class A>
SFTN_INLINE NearRow near_row(const LogitsInput& in, const A* teacher, const A* student, A t_max, A s_max, double z,
                             A mean) {
  const double temperature = in.options.temperature;
  const A rate = A(kLog2E / temperature), inverse = A(1 / temperature);
  Tail<A> t_tail, s_tail;
  Lanes<A> far(0);
  double first = 0, rest = 0;  // sums of weight * y, of weight * (exp(y) - 1 - y)
  for (int64_t begin = 0; begin < in.c; begin += kChunk) {
    const int64_t size = std::min(kChunk, in.c - begin);
    const ChunkView<A> t(teacher + begin, size, t_tail), s(student + begin, size, s_tail);
    Lanes<A> first_of(0), rest_of(0);
    for (int64_t b = 0; b < t.blocks(); ++b) {
      const A *of_t = t.block(b), *of_s = s.block(b);
      SFTN_LANES {
        const A t_l = of_t[l] - t_max, s_l = of_s[l] - s_max;
        const A weight = fast_exp2((kStudentWeighs ? s_l : t_l) * rate);
        const A given = (mean - (kStudentWeighs ? s_l - t_l : t_l - s_l)) * inverse;
        const A y = given == given ? given : A(0);  // NaN for a class that both rule out
        const A distance = y < 0 ? -y : y;
        far.lane[l] = distance > far.lane[l] ? distance : far.lane[l];
        first_of.lane[l] += weight * y;
        rest_of.lane[l] += weight * exp_remainder(y);
      }
    }
    first += first_of.sum();
    rest += rest_of.sum();
  }
  if (!(far.max() <= A(kNearDifference))) return {};
  first /= z;
  rest /= z;
  const double e = first + rest;
  return {std::max(0.0, rest + log1p_remainder(e)), mean - first * temperature};
}

// Writes one row's statistics to `stats` [3 + 5 K] and its terms to `terms` [1 + 2 K]: CE of the teacher, then CE and
// KL of each student. `sums` [1 + K] is scratch.
template <class A>
SFTN_INLINE void forward_row_inline(const LogitsInput& in, const LogitsRow<A>& row, A* stats, double* terms,
                                    RowSums<A>* sums) {
  const LogitsOptions& options = in.options;
  const bool has_target = in.target.has_value(), teacher_ce = has_target && options.teacher_weight != 0;
  const bool smooth = has_target && options.label_smoothing != 0, student_weighs = options.student_to_teacher;
  with_squarings(has_target, options.temperature, [&](auto squarings) __attribute__((always_inline)) {
    if (student_weighs) {
      row_sums<squarings, true>(in, row, teacher_ce, smooth, sums);
    } else {
      row_sums<squarings, false>(in, row, teacher_ce, smooth, sums);
    }
  });

  const RowSums<A>& teacher = sums[0];
  const double t_log_z = std::log(teacher.z), t_log_z1 = teacher_ce ? std::log(teacher.z1) : 0;
  stats[0] = teacher.max;
  stats[1] = A(t_log_z1);
  stats[2] = A(t_log_z);
  terms[0] = 0;
  if (row.y >= 0 && teacher_ce) {
    terms[0] = cross_entropy(teacher, row.teacher[row.y], t_log_z1, options.label_smoothing, in.c);
  }
  for (int64_t k = 0; k < in.k(); ++k) {
    const RowSums<A>& student = sums[1 + k];
    const double s_log_z = std::log(student.z), s_log_z1 = has_target ? std::log(student.z1) : 0;
    const double z = student_weighs ? student.z : teacher.z, mean = student.dot / z;
    double kl = mean / options.temperature + (student_weighs ? t_log_z - s_log_z : s_log_z - t_log_z);
    NearRow near;
    if (kl < kNearDivergence) {
      near = (student_weighs ? near_row<true, A> : near_row<false, A>)(in, row.teacher, row.students[k], teacher.max,
                                                                       student.max, z, A(mean));
      if (near.kl >= 0) kl = near.kl;
    }
    A* of_student = stats + 3 + 5 * k;
    of_student[0] = student.max;
    of_student[1] = A(s_log_z1);
    of_student[2] = A(s_log_z);
    of_student[3] = A(near.kl >= 0 ? near.mean : mean);
    of_student[4] = A(near.kl);
    double* of_terms = terms + 1 + 2 * k;
    of_terms[0] = 0;
    if (row.y >= 0) {
      of_terms[0] = cross_entropy(student, row.students[k][row.y], s_log_z1, options.label_smoothing, in.c);
    }
    of_terms[1] = kl;
  }
}

// ---- backward ----

// The factors of a row's gradients, including those of the chain rule and the reduction.
struct RowScale {
  double kl;          // of T dKL/dx, T the temperature
  double t_ce, s_ce;  // of p - (1 - smoothing) onehot - smoothing / C; 0 where the row has no target
};

// The map from one row's logits to probabilities and the gradient of its cross-entropy.
template <class A>
struct SavedRow {
  A max, inv_z, ce_scale, uniform;  // softmax(x / T) = exp(x / T) inv_z; gradient = exp(x) ce_scale - uniform

  SFTN_INLINE SavedRow(const A* stats, bool with_ce, double ce, double smoothing, int64_t c)
      : max(stats[0]),
        inv_z(A(std::exp(-double(stats[2])))),
        ce_scale(with_ce ? A(ce * std::exp(-double(stats[1]))) : A(0)),
        uniform(A(ce * smoothing / c)) {}

  // q = softmax(x / T) of a block, and grad = the cross-entropy's gradient without the target's part, or 0 if no target
  template <int kSquarings>
  SFTN_INLINE void probabilities(const A* logits, A rate, A* x, A* q, A* grad) const {
    SFTN_LANES {
      x[l] = logits[l] - max;
      const A e = fast_exp2(x[l] * rate);
      q[l] = e * inv_z;
      grad[l] = kSquarings == kNotAtOne ? A(0) : exp_at_one<kSquarings>(x[l], e) * ce_scale - uniform;
    }
  }
};

// Gradient of the divergence with respect to the weighting distribution: scale q (d - mean of d), with d the difference
// of the two logits less their maxima. This is q (log q - log other - KL) without the terms that cancel, which at
// logits of 1e4 are all of float's digits. A probability of 0 has no gradient, however far the other is.
template <class A>
SFTN_INLINE void add_weighing(A* grad, A scale, const A* q, const A* x, const A* other, A mean) {
  SFTN_LANES grad[l] += q[l] == 0 ? A(0) : scale * q[l] * ((x[l] - other[l]) - mean);
}

// Gradient of the divergence with respect to the other distribution.
template <class A>
SFTN_INLINE void add_followed(A* grad, A scale, const A* q, const A* weight) {
  SFTN_LANES grad[l] += scale * (q[l] - weight[l]);
}

// The same if the two are near, from the logarithm of their ratio. `of_weight` and `of_other` are their logits less the
// maxima.
template <class A>
struct NearGradient {
  A mean, inverse_temperature, kl;

  SFTN_INLINE void add_followed(A* grad, A scale, const A* weight, const A* of_weight, const A* of_other) const {
    SFTN_LANES {
      const A log_ratio = (mean - (of_weight[l] - of_other[l])) * inverse_temperature - kl;
      grad[l] += weight[l] == 0 ? A(0) : scale * weight[l] * (log_ratio + exp_remainder(log_ratio));
    }
  }
};

// One row of the requested gradients: t_out [C] and K of s_out [C], null if not requested.
template <class A>
SFTN_INLINE void backward_row_inline(const LogitsInput& in, const LogitsRow<A>& row, const A* stats,
                                     const RowScale& scale, A* t_out, A* const* s_out) {
  const LogitsOptions& options = in.options;
  const double smoothing = options.label_smoothing;
  const A rate = A(kLog2E / options.temperature), kl = A(scale.kl), weighing = A(scale.kl / options.temperature);
  const bool want_t = t_out != nullptr, want_s = s_out != nullptr;
  const bool t_ce = want_t && row.y >= 0 && options.teacher_weight != 0, s_ce = want_s && row.y >= 0;
  const SavedRow<A> teacher(stats, t_ce, scale.t_ce, smoothing, in.c);
  Tail<A> t_tail, s_tail, t_grad, s_grad;
  alignas(64) A t_q[kChunk], t_x[kChunk], t_unwanted[kLanes], s_unwanted[kLanes];

  for (int64_t begin = 0; begin < in.c; begin += kChunk) {
    const int64_t size = std::min(kChunk, in.c - begin);
    const ChunkView<A> t(row.teacher + begin, size, t_tail);
    const ChunkResult<A> t_result(want_t ? t_out + begin : nullptr, size, t_grad);
    with_squarings(t_ce, options.temperature, [&](auto squarings) __attribute__((always_inline)) {
      for (int64_t b = 0; b < t.blocks(); ++b) {
        A* to = want_t ? t_result.block(b) : t_unwanted;
        __builtin_prefetch(t.block(b) + row.to_next[0]);
        teacher.template probabilities<squarings>(t.block(b), rate, t_x + b * kLanes, t_q + b * kLanes, to);
      }
    });
    for (int64_t k = 0; k < in.k(); ++k) {
      const A* of_student = stats + 3 + 5 * k;
      const A mean = of_student[3];
      const bool near = of_student[4] >= 0;
      const NearGradient<A> when_near{mean, A(1 / options.temperature), of_student[4]};
      const SavedRow<A> student(of_student, s_ce, scale.s_ce, smoothing, in.c);
      const ChunkView<A> s(row.students[k] + begin, size, s_tail);
      const ChunkResult<A> s_result(want_s ? s_out[k] + begin : nullptr, size, s_grad);
      with_squarings(s_ce, options.temperature, [&](auto squarings) __attribute__((always_inline)) {
        for (int64_t b = 0; b < s.blocks(); ++b) {
          alignas(64) A x[kLanes], q[kLanes];
          A* s_to = want_s ? s_result.block(b) : s_unwanted;
          A* t_to = want_t ? t_result.block(b) : t_unwanted;
          const A *of_t = t_x + b * kLanes, *weights = t_q + b * kLanes;
          __builtin_prefetch(s.block(b) + row.to_next[1 + k]);
          student.template probabilities<squarings>(s.block(b), rate, x, q, s_to);
          if (options.student_to_teacher) {
            add_weighing(s_to, weighing, q, x, of_t, mean);
            if (want_t && near) when_near.add_followed(t_to, kl, q, x, of_t);
            if (want_t && !near) add_followed(t_to, kl, weights, q);
          } else {
            if (near) when_near.add_followed(s_to, kl, weights, of_t, x);
            if (!near) add_followed(s_to, kl, q, weights);
            if (want_t) add_weighing(t_to, weighing, weights, of_t, x, mean);
          }
        }
      });
      if (want_s) s_result.finish();
    }
    if (want_t) t_result.finish();
  }
  if (t_ce) t_out[row.y] -= A(scale.t_ce * (1 - smoothing));
  for (int64_t k = 0; s_ce && k < in.k(); ++k) s_out[k][row.y] -= A(scale.s_ce * (1 - smoothing));
}

}  // namespace sftn
