// The gradients of one row of the losses on logits: from the statistics that a forward pass saved, or at once from its
// sums and its exponentials.
#pragma once

#include "logits_forward_row.h"

namespace sftn {

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

  // `inv_z1` is sum(u) / sum exp(x), and `ce` the factor of the cross-entropy's gradient: 0 if there is none.
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

// Subtracts a target's part of the cross-entropy's gradient from a chunk.
template <class A>
SFTN_INLINE void subtract_target(const ChunkResult<A>& grad, const A* probabilities, int64_t size, A factor) {
  Tail<A> tail;
  const ChunkView<A> target(probabilities, size, tail, 0);
  for (int64_t b = 0; b < target.blocks(); ++b) {
    const A* y = target.block(b);
    A* to = grad.block(b);
    SFTN_LANES to[l] -= factor * y[l];
  }
}

// One row of the requested gradients: t_out [C] and K of s_out [C], null if not requested. The exponentials are
// computed, or those that were kept.
template <bool kKept, class A>
SFTN_INLINE void gradient_row_inline(const LogitsInput& in, const LogitsRow<A>& row, const RowGradient<A>& teacher,
                                     const StudentGradient<A>* students, const Kept<A>& kept, const RowScale& scale,
                                     A* t_out, A* const* s_out) {
  const LogitsOptions& options = in.options;
  const A inverse = A(1 / options.temperature), rate = A(kLog2E / options.temperature);
  const A kl = A(scale.kl), weighing = A(scale.kl / options.temperature);
  const A t_target = A(scale.t_ce * (1 - options.label_smoothing));
  const A s_target = A(scale.s_ce * (1 - options.label_smoothing));
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
      if (s_ce && row.probabilities) subtract_target(s_result, row.probabilities + begin, size, s_target);
      if (want_s) s_result.finish();
    }
    if (t_ce && row.probabilities) subtract_target(t_result, row.probabilities + begin, size, t_target);
    if (want_t) t_result.finish();
  }
  if (row.y < 0) return;
  if (t_ce) t_out[row.y] -= t_target;
  for (int64_t k = 0; s_ce && k < in.k(); ++k) s_out[k][row.y] -= s_target;
}

// The maps of a row's teacher and students [K], from the statistics of the forward pass.
template <class A>
SFTN_INLINE RowGradient<A> gradients_of(const LogitsInput& in, const A* stats, const RowScale& scale,
                                        StudentGradient<A>* students) {
  const double smoothing = in.options.label_smoothing;
  const double mass = in.probabilities ? double(stats[in.mass_stat()]) : 1;
  const auto inverse = [](bool wanted, A log_z) { return wanted ? std::exp(-double(log_z)) : 0; };
  for (int64_t k = 0; k < in.k(); ++k) {
    const A* of = stats + 3 + 5 * k;
    const RowGradient<A> row(of[0], inverse(true, of[2]), mass * inverse(scale.s_ce != 0, of[1]), scale.s_ce, smoothing,
                             in.c);
    students[k] = {row, of[3], of[4], of[4] >= 0};
  }
  return {stats[0], inverse(true, stats[2]), mass * inverse(scale.t_ce != 0, stats[1]), scale.t_ce, smoothing, in.c};
}

// The same from the sums; and writes the row's terms, as the forward pass does.
template <class A>
SFTN_INLINE RowGradient<A> terms_row_inline(const LogitsInput& in, const LogitsRow<A>& row, const RowSums<A>* sums,
                                            const RowScale& scale, double* terms, StudentGradient<A>* students) {
  const LogitsOptions& options = in.options;
  const double smoothing = options.label_smoothing, mass = target_mass(row, sums, smoothing);
  const bool teacher_ce = row.has_target() && options.teacher_weight != 0;
  const RowSums<A>& teacher = sums[0];
  terms[0] = teacher_ce ? cross_entropy(row, teacher, row.teacher, mass, std::log(teacher.z1), smoothing, in.c) : 0;
  for (int64_t k = 0; k < in.k(); ++k) {
    const RowSums<A>& student = sums[1 + k];
    const double log_ratio = std::log(options.student_to_teacher ? teacher.z / student.z : student.z / teacher.z);
    const Divergence divergence = divergence_of(in, row, k, sums, log_ratio);
    double* of_terms = terms + 1 + 2 * k;
    of_terms[0] = 0;
    if (row.has_target()) {
      of_terms[0] = cross_entropy(row, student, row.students[k], mass, std::log(student.z1), smoothing, in.c);
    }
    of_terms[1] = divergence.kl;
    const RowGradient<A> gradient(student.max, 1 / student.z, row.has_target() ? mass / student.z1 : 0, scale.s_ce,
                                  smoothing, in.c);
    students[k] = {gradient, A(divergence.mean), A(divergence.kl), divergence.near};
  }
  return {teacher.max, 1 / teacher.z, teacher_ce ? mass / teacher.z1 : 0, scale.t_ce, smoothing, in.c};
}

}  // namespace sftn
