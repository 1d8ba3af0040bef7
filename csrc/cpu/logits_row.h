// One row of the losses on logits, forward, backward or both at once, in float or double; ../logits.h has the formulas.
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

// How exp(x) follows from exp(x / T): not needed, as its T-th power, or computed separately. A whole T up to kMostPower
// is a power, whose T roundings are far below the losses' tolerance. 1 and 4 are known at compile time.
constexpr int kNotAtOne = 0, kWhole = -1, kAnew = -2, kMostPower = 16;

template <class F>
SFTN_INLINE void with_power(bool at_one, double temperature, F f) {
  if (!at_one) return f(Int<kNotAtOne>{});
  if (temperature == 1) return f(Int<1>{});
  if (temperature == 4) return f(Int<4>{});
  if (temperature <= kMostPower && temperature == std::floor(temperature)) return f(Int<kWhole>{});
  f(Int<kAnew>{});
}

// exp(x) of a block, from e = exp(x / T)
template <int kPower, class A>
SFTN_INLINE void exp_at_one(const A* x, const A* e, int temperature, A* result) {
  if constexpr (kPower == 4) SFTN_LANES result[l] = (e[l] * e[l]) * (e[l] * e[l]);
  if constexpr (kPower == 1) SFTN_LANES result[l] = e[l];
  if constexpr (kPower == kAnew) SFTN_LANES result[l] = fast_exp2(x[l] * A(kLog2E));
  if constexpr (kPower == kWhole) {
    alignas(64) A square[kLanes];
    SFTN_LANES square[l] = e[l];
    SFTN_LANES result[l] = temperature & 1 ? e[l] : A(1);
    for (int bits = temperature >> 1; bits != 0; bits >>= 1) {
      SFTN_LANES square[l] *= square[l];
      if (bits & 1) SFTN_LANES result[l] *= square[l];
    }
  }
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

template <int kPower, class A>
SFTN_INLINE void add_at_one(Lanes<A>& z1, const A* x, const A* e, int temperature) {
  if constexpr (kPower != kNotAtOne) {
    alignas(64) A at_one[kLanes];
    exp_at_one<kPower>(x, e, temperature, at_one);
    SFTN_LANES z1.lane[l] += at_one[l];
  }
}

// Adds a chunk of the teacher to its sums and leaves exp((t - max) / T) in `weights`. `rate` is log2(e) / T.
template <int kPower, class A>
SFTN_INLINE void add_teacher(RowSums<A>& sums, const ChunkView<A>& view, A rate, int temperature, A* weights,
                             int64_t to_next) {
  Lanes<A> z(0), z1(0);
  const A max = sums.max;
  for (int64_t b = 0; b < view.blocks(); ++b) {
    const A* t = view.block(b);
    A* e = weights + b * kLanes;
    __builtin_prefetch(t + to_next);
    alignas(64) A x[kLanes];
    SFTN_LANES {
      x[l] = t[l] - max;
      e[l] = fast_exp2(x[l] * rate);
      z.lane[l] += e[l];
    }
    add_at_one<kPower>(z1, x, e, temperature);
  }
  sums.z += z.sum();
  sums.z1 += z1.sum();
}

// Adds a chunk of a student to its sums, and to its dot the sum over classes of weight * difference of the two logits
// less their maxima: the teacher's weights and t - s, or the student's and s - t. A weight of 0 contributes nothing,
// however large the difference. Leaves exp((s - max) / T) in `s_weights`.
template <int kPower, bool kStudentWeighs, class A>
SFTN_INLINE void add_student(RowSums<A>& sums, const ChunkView<A>& view, A rate, int temperature,
                             const ChunkView<A>& teacher, A t_max, const A* t_weights, A* s_weights, int64_t to_next) {
  Lanes<A> z(0), z1(0), dot(0);
  const A max = sums.max;
  for (int64_t b = 0; b < view.blocks(); ++b) {
    const A *s = view.block(b), *t = teacher.block(b), *t_e = t_weights + b * kLanes;
    A* e = s_weights + b * kLanes;
    __builtin_prefetch(s + to_next);
    alignas(64) A x[kLanes];
    SFTN_LANES {
      x[l] = s[l] - max;
      e[l] = fast_exp2(x[l] * rate);
      z.lane[l] += e[l];
      const A apart = (t[l] - t_max) - x[l], weight = kStudentWeighs ? e[l] : t_e[l];
      dot.lane[l] += weight == 0 ? A(0) : weight * (kStudentWeighs ? -apart : apart);
    }
    add_at_one<kPower>(z1, x, e, temperature);
  }
  sums.z += z.sum();
  sums.z1 += z1.sum();
  sums.dot += dot.sum();
}

// Where the exponentials of a row are left: [1 + K] rows of `stride`, a multiple of the lanes, or nowhere.
template <class A>
struct Kept {
  A* exponentials = nullptr;
  int64_t stride = 0;

  SFTN_INLINE A* at(int64_t row, int64_t begin, A* otherwise) const {
    return exponentials ? exponentials + row * stride + begin : otherwise;
  }
};

// The sums of the teacher and of each student, [1 + K].
template <int kPower, bool kStudentWeighs, class A>
SFTN_INLINE void row_sums(const LogitsInput& in, const LogitsRow<A>& row, bool teacher_ce, bool smooth,
                          const Kept<A>& kept, RowSums<A>* sums) {
  const int64_t k_count = in.k();
  const A rate = A(kLog2E / in.options.temperature);
  const int temperature = int(std::min(in.options.temperature, double(kMostPower)));
  RowSums<A>& teacher = sums[0];
  RowSums<A>* students = sums + 1;
  Tail<A> t_tail, s_tail;
  alignas(64) A t_chunk[kChunk], s_chunk[kChunk];

  teacher = {max_of(row.teacher, in.c)};
  for (int64_t k = 0; k < k_count; ++k) students[k] = {max_of(row.students[k], in.c)};
  for (int64_t begin = 0; begin < in.c; begin += kChunk) {
    const int64_t size = std::min(kChunk, in.c - begin);
    const ChunkView<A> t(row.teacher + begin, size, t_tail);
    A* t_weights = kept.at(0, begin, t_chunk);
    if (teacher_ce) {
      add_teacher<kPower>(teacher, t, rate, temperature, t_weights, row.to_next[0]);
    } else {
      add_teacher<kNotAtOne>(teacher, t, rate, temperature, t_weights, row.to_next[0]);
    }
    if (smooth) add_below(teacher, row.teacher + begin, size);
    for (int64_t k = 0; k < k_count; ++k) {
      const ChunkView<A> s(row.students[k] + begin, size, s_tail);
      add_student<kPower, kStudentWeighs>(students[k], s, rate, temperature, t, teacher.max, t_weights,
                                          kept.at(1 + k, begin, s_chunk), row.to_next[1 + k]);
      if (smooth) add_below(students[k], row.students[k] + begin, size);
    }
  }
}

// The sums of a row [1 + K], its exponentials kept or not.
template <class A>
SFTN_INLINE void sums_row_inline(const LogitsInput& in, const LogitsRow<A>& row, const Kept<A>& kept,
                                 RowSums<A>* sums) {
  const bool has_target = in.target.has_value(), smooth = has_target && in.options.label_smoothing != 0;
  const bool teacher_ce = has_target && in.options.teacher_weight != 0;
  with_power(has_target, in.options.temperature, [&](auto power) __attribute__((always_inline)) {
    if (in.options.student_to_teacher) {
      row_sums<power, true>(in, row, teacher_ce, smooth, kept, sums);
    } else {
      row_sums<power, false>(in, row, teacher_ce, smooth, kept, sums);
    }
  });
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

// A divergence: its value, the mean around which it was summed, and whether the two are near.
struct Divergence {
  double kl, mean;
  bool near;
};

// `log_ratio` is the difference of the logarithms of z, the followed one's less the weighing one's.
template <class A>
SFTN_INLINE Divergence divergence_of(const LogitsInput& in, const LogitsRow<A>& row, int64_t k, const RowSums<A>* sums,
                                     double log_ratio) {
  const bool student_weighs = in.options.student_to_teacher;
  const RowSums<A>&teacher = sums[0], &student = sums[1 + k];
  const double z = student_weighs ? student.z : teacher.z, mean = student.dot / z;
  const double kl = mean / in.options.temperature + log_ratio;
  if (kl < kNearDivergence) {
    const NearRow near =
        (student_weighs ? near_row<true, A> : near_row<false, A>)(in, row.teacher, row.students[k], teacher.max,
                                                                  student.max, z, A(mean));
    if (near.kl >= 0) return {near.kl, near.mean, true};
  }
  return {kl, mean, false};
}

// Writes one row's statistics to `stats` [3 + 5 K] and its terms to `terms` [1 + 2 K]: CE of the teacher, then CE and
// KL of each student.
template <class A>
SFTN_INLINE void forward_row_inline(const LogitsInput& in, const LogitsRow<A>& row, const RowSums<A>* sums, A* stats,
                                    double* terms) {
  const LogitsOptions& options = in.options;
  const bool has_target = in.target.has_value(), teacher_ce = has_target && options.teacher_weight != 0;

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
    const double log_ratio = options.student_to_teacher ? t_log_z - s_log_z : s_log_z - t_log_z;
    const Divergence divergence = divergence_of(in, row, k, sums, log_ratio);
    A* of_student = stats + 3 + 5 * k;
    of_student[0] = student.max;
    of_student[1] = A(s_log_z1);
    of_student[2] = A(s_log_z);
    of_student[3] = A(divergence.mean);
    of_student[4] = divergence.near ? A(divergence.kl) : A(-1);
    double* of_terms = terms + 1 + 2 * k;
    of_terms[0] = 0;
    if (row.y >= 0) {
      of_terms[0] = cross_entropy(student, row.students[k][row.y], s_log_z1, options.label_smoothing, in.c);
    }
    of_terms[1] = divergence.kl;
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
struct RowGradient {
  A max, inv_z, ce_scale, uniform;  // softmax(x / T) = exp(x / T) inv_z; gradient = exp(x) ce_scale - uniform

  RowGradient() = default;

  // `inv_z1` is 1 / sum exp(x), and `ce` the factor of the cross-entropy's gradient: 0 if there is none.
  SFTN_INLINE RowGradient(A max, double inv_z, double inv_z1, double ce, double smoothing, int64_t c)
      : max(max), inv_z(A(inv_z)), ce_scale(A(ce * inv_z1)), uniform(A(ce * smoothing / c)) {}

  // q = softmax(x / T) of a block, and grad = the cross-entropy's gradient without the target's part, or 0 if no
  // target. `kept` has the block's exponentials if kKept.
  template <int kPower, bool kKept>
  SFTN_INLINE void probabilities(const A* logits, const A* kept, A rate, int temperature, A* x, A* q, A* grad) const {
    alignas(64) A e[kLanes];
    SFTN_LANES {
      x[l] = logits[l] - max;
      e[l] = kKept ? kept[l] : fast_exp2(x[l] * rate);
      q[l] = e[l] * inv_z;
    }
    if constexpr (kPower == kNotAtOne) {
      SFTN_LANES grad[l] = A(0);
    } else {
      alignas(64) A at_one[kLanes];
      exp_at_one<kPower>(x, e, temperature, at_one);
      SFTN_LANES grad[l] = at_one[l] * ce_scale - uniform;
    }
  }
};

// What a student's gradient needs beside its row.
template <class A>
struct StudentGradient {
  RowGradient<A> row;
  A mean, kl;  // of the divergence
  bool near;
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

// One row of the requested gradients: t_out [C] and K of s_out [C], null if not requested. The exponentials are
// computed, or those that were kept.
template <bool kKept, class A>
SFTN_INLINE void gradient_row_inline(const LogitsInput& in, const LogitsRow<A>& row, const RowGradient<A>& teacher,
                                     const StudentGradient<A>* students, const Kept<A>& kept, const RowScale& scale,
                                     A* t_out, A* const* s_out) {
  const LogitsOptions& options = in.options;
  const A inverse = A(1 / options.temperature), rate = A(kLog2E / options.temperature);
  const A kl = A(scale.kl), weighing = A(scale.kl / options.temperature);
  const int temperature = int(std::min(options.temperature, double(kMostPower)));
  const bool want_t = t_out != nullptr, want_s = s_out != nullptr;
  const bool t_ce = want_t && scale.t_ce != 0, s_ce = want_s && scale.s_ce != 0;
  Tail<A> t_tail, s_tail, t_grad, s_grad;
  alignas(64) A t_q[kChunk], t_x[kChunk], t_unwanted[kLanes], s_unwanted[kLanes];

  for (int64_t begin = 0; begin < in.c; begin += kChunk) {
    const int64_t size = std::min(kChunk, in.c - begin);
    const ChunkView<A> t(row.teacher + begin, size, t_tail);
    const ChunkResult<A> t_result(want_t ? t_out + begin : nullptr, size, t_grad);
    const A* t_kept = kept.at(0, begin, t_x);
    with_power(t_ce, options.temperature, [&](auto power) __attribute__((always_inline)) {
      for (int64_t b = 0; b < t.blocks(); ++b) {
        A* to = want_t ? t_result.block(b) : t_unwanted;
        __builtin_prefetch(t.block(b) + row.to_next[0]);
        teacher.template probabilities<power, kKept>(t.block(b), t_kept + b * kLanes, rate, temperature,
                                                     t_x + b * kLanes, t_q + b * kLanes, to);
      }
    });
    for (int64_t k = 0; k < in.k(); ++k) {
      const StudentGradient<A>& student = students[k];
      const NearGradient<A> when_near{student.mean, inverse, student.kl};
      const ChunkView<A> s(row.students[k] + begin, size, s_tail);
      const ChunkResult<A> s_result(want_s ? s_out[k] + begin : nullptr, size, s_grad);
      const A* s_kept = kept.at(1 + k, begin, t_x);
      with_power(s_ce, options.temperature, [&](auto power) __attribute__((always_inline)) {
        for (int64_t b = 0; b < s.blocks(); ++b) {
          alignas(64) A x[kLanes], q[kLanes];
          A* s_to = want_s ? s_result.block(b) : s_unwanted;
          A* t_to = want_t ? t_result.block(b) : t_unwanted;
          const A *of_t = t_x + b * kLanes, *weights = t_q + b * kLanes;
          __builtin_prefetch(s.block(b) + row.to_next[1 + k]);
          student.row.template probabilities<power, kKept>(s.block(b), s_kept + b * kLanes, rate, temperature, x, q,
                                                           s_to);
          if (options.student_to_teacher) {
            add_weighing(s_to, weighing, q, x, of_t, student.mean);
            if (want_t && student.near) when_near.add_followed(t_to, kl, q, x, of_t);
            if (want_t && !student.near) add_followed(t_to, kl, weights, q);
          } else {
            if (student.near) when_near.add_followed(s_to, kl, weights, of_t, x);
            if (!student.near) add_followed(s_to, kl, q, weights);
            if (want_t) add_weighing(t_to, weighing, weights, of_t, x, student.mean);
          }
        }
      });
      if (want_s) s_result.finish();
    }
    if (want_t) t_result.finish();
  }
  if (t_ce) t_out[row.y] -= A(scale.t_ce * (1 - options.label_smoothing));
  for (int64_t k = 0; s_ce && k < in.k(); ++k) s_out[k][row.y] -= A(scale.s_ce * (1 - options.label_smoothing));
}

// The maps of a row's teacher and students [K], from the statistics of the forward pass.
template <class A>
SFTN_INLINE RowGradient<A> gradients_of(const LogitsInput& in, const A* stats, const RowScale& scale,
                                        StudentGradient<A>* students) {
  const double smoothing = in.options.label_smoothing;
  const auto inverse = [](bool wanted, A log_z) { return wanted ? std::exp(-double(log_z)) : 0; };
  for (int64_t k = 0; k < in.k(); ++k) {
    const A* of = stats + 3 + 5 * k;
    const RowGradient<A> row(of[0], inverse(true, of[2]), inverse(scale.s_ce != 0, of[1]), scale.s_ce, smoothing, in.c);
    students[k] = {row, of[3], of[4], of[4] >= 0};
  }
  return {stats[0], inverse(true, stats[2]), inverse(scale.t_ce != 0, stats[1]), scale.t_ce, smoothing, in.c};
}

// ---- both at once ----

// The same from the sums; and writes the row's terms, as the forward pass does.
template <class A>
SFTN_INLINE RowGradient<A> terms_row_inline(const LogitsInput& in, const LogitsRow<A>& row, const RowSums<A>* sums,
                                            const RowScale& scale, double* terms, StudentGradient<A>* students) {
  const LogitsOptions& options = in.options;
  const double smoothing = options.label_smoothing;
  const bool teacher_ce = row.y >= 0 && options.teacher_weight != 0;
  const RowSums<A>& teacher = sums[0];
  terms[0] = teacher_ce ? cross_entropy(teacher, row.teacher[row.y], std::log(teacher.z1), smoothing, in.c) : 0;
  for (int64_t k = 0; k < in.k(); ++k) {
    const RowSums<A>& student = sums[1 + k];
    const double log_ratio = std::log(options.student_to_teacher ? teacher.z / student.z : student.z / teacher.z);
    const Divergence divergence = divergence_of(in, row, k, sums, log_ratio);
    double* of_terms = terms + 1 + 2 * k;
    of_terms[0] = 0;
    if (row.y >= 0) {
      of_terms[0] = cross_entropy(student, row.students[k][row.y], std::log(student.z1), smoothing, in.c);
    }
    of_terms[1] = divergence.kl;
    const RowGradient<A> gradient(student.max, 1 / student.z, row.y >= 0 ? 1 / student.z1 : 0, scale.s_ce, smoothing,
                                  in.c);
    students[k] = {gradient, A(divergence.mean), A(divergence.kl), divergence.near};
  }
  return {teacher.max, 1 / teacher.z, teacher_ce ? 1 / teacher.z1 : 0, scale.t_ce, smoothing, in.c};
}

}  // namespace sftn
