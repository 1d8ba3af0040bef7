// The gradients of rows of the losses on logits: from the statistics that a forward pass saved, or at once from their
// sums and their exponentials.
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

  // The cross-entropy's gradient without the target's part, from x = logits - max and e = exp(x / T); 0 if no target.
  template <int kPower, class V>
  SFTN_INLINE V cross_entropy(V x, V e, int power) const {
    if constexpr (kPower == kNotAtOne) {
      return V(A(0));
    } else {
      return exp_at_one<kPower>(x, e, power) * V(ce_scale) - V(uniform);
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
// `apart` of the two logits less their maxima. This is q (log q - log other - KL) without the terms that cancel, which
// at logits of 1e4 are all of float's digits. A probability of 0 has no gradient, however far the other is.
template <class V, class A>
SFTN_INLINE V along_weighing(A scale, V q, V apart, A mean) {
  return select(q == V(A(0)), V(A(0)), V(scale) * q * (apart - V(mean)));
}

// Gradient of the divergence with respect to the other distribution if the two are near, from the logarithm of their
// ratio. Elsewhere it is scale (q - weight).
template <class V, class A>
SFTN_INLINE V along_near(A scale, V weight, V apart, A mean, A inverse_temperature, A kl) {
  const V log_ratio = (V(mean) - apart) * V(inverse_temperature) - V(kl);
  return select(weight == V(A(0)), V(A(0)), V(scale) * weight * (log_ratio + exp_remainder(log_ratio)));
}

// Subtracts a target's part of the cross-entropy's gradient from a chunk.
template <class A>
SFTN_INLINE void subtract_target(const FrontResult<A>& grad, const A* probabilities, int64_t size, A factor) {
  Tail<A> tail;
  const FrontView<A> target(probabilities, size, tail, 0);
  for (int64_t b = 0; b < target.blocks(); ++b) {
    const A* y = target.block(b);
    A* to = grad.block(b);
    SFTN_LANES to[l] -= factor * y[l];
  }
}

// A chunk of teacher and one student: what is read, and where gradients go.
template <class A>
struct GradientChunk {
  const FrontView<A>&t, &s;
  const A *t_e, *s_e;                // exponentials; the student's if they were kept
  const FrontResult<A>*t_to, *s_to;  // null if not requested
  int64_t to_next;                   // from the student's row
};

// Numbers of a row that all blocks need.
template <class A>
struct GradientScale {
  A rate, inverse_temperature, kl, weighing;
  int power;  // see whole_power
};

// Adds a student's share of the teacher's gradient to it, and writes the student's own without the target's part.
// kFar: of the usual direction, and not near, where few numbers are needed.
template <int kPower, bool kKept, bool kFar, bool kTeacher, int kBytes, class A>
SFTN_INLINE void add_gradients(const GradientChunk<A>& chunk, const GradientScale<A>& given_scale,
                               const RowGradient<A>& given_teacher, const StudentGradient<A>& given_student,
                               bool student_to_teacher) {
  using V = Block<kBytes, A>;
  // copies, which no store of a gradient can change
  const GradientScale<A> scale = given_scale;
  const RowGradient<A> teacher = given_teacher;
  const StudentGradient<A> student = given_student;
  const RowGradient<A>& row = student.row;
  for (int64_t b = 0; b < chunk.s.blocks(); ++b) {
    const int64_t at = b * kLanes;
    const A* s = chunk.s.block(b);
    if (!kKept) __builtin_prefetch(s + chunk.to_next);
    const V x = V::load(s) - V(row.max), of_t = V::load(chunk.t.block(b)) - V(teacher.max), apart = of_t - x;
    const V e = kKept ? V::load(chunk.s_e + at) : fast_exp2(x * V(scale.rate));
    const V q = e * V(row.inv_z), of_teacher = V::load(chunk.t_e + at) * V(teacher.inv_z);
    V s_grad = row.template cross_entropy<kPower>(x, e, scale.power), t_grad(0);
    if (kFar) {
      s_grad += V(scale.kl) * (q - of_teacher);
      if (kTeacher) t_grad = along_weighing(scale.weighing, of_teacher, apart, student.mean);
    } else if (student_to_teacher) {
      s_grad += along_weighing(scale.weighing, q, -apart, student.mean);
      t_grad = student.near ? along_near(scale.kl, q, -apart, student.mean, scale.inverse_temperature, student.kl)
                            : V(scale.kl) * (of_teacher - q);
    } else {
      s_grad += student.near
                    ? along_near(scale.kl, of_teacher, apart, student.mean, scale.inverse_temperature, student.kl)
                    : V(scale.kl) * (q - of_teacher);
      t_grad = along_weighing(scale.weighing, of_teacher, apart, student.mean);
    }
    if (chunk.s_to) s_grad.store(chunk.s_to->block(b));
    if (kTeacher && chunk.t_to) (V::load(chunk.t_to->block(b)) + t_grad).store(chunk.t_to->block(b));
  }
}

// One row of the requested gradients: t_out [C] and K of s_out [C], null if not requested. The exponentials are
// computed, or those in `kept`, [1 + K] rows of `stride`.
template <bool kKept, int kBytes, class A>
SFTN_INLINE void gradient_row_inline(const LogitsInput& in, const LogitsRow<A>& row, const RowGradient<A>& teacher,
                                     const StudentGradient<A>* students, const A* kept, int64_t stride,
                                     const RowScale& scale, A* t_out, A* const* s_out) {
  using V = Block<kBytes, A>;
  const LogitsOptions& options = in.options;
  const GradientScale<A> of_row{A(kLog2E / options.temperature), A(1 / options.temperature), A(scale.kl),
                                A(scale.kl / options.temperature), whole_power(options.temperature)};
  const A t_target = A(scale.t_ce * (1 - options.label_smoothing));
  const A s_target = A(scale.s_ce * (1 - options.label_smoothing));
  const bool want_t = t_out != nullptr, want_s = s_out != nullptr;
  const bool t_ce = want_t && scale.t_ce != 0, s_ce = want_s && scale.s_ce != 0;
  Tail<A> t_tail, s_tail, t_grad, s_grad;
  alignas(64) A t_chunk[kKept ? kLanes : kChunk];

  for (int64_t begin = 0; begin < in.c; begin += kChunk) {
    const int64_t size = std::min(kChunk, in.c - begin);
    const FrontView<A> t(row.teacher + begin, size, t_tail);
    const FrontResult<A> t_result(want_t ? t_out + begin : nullptr, size, t_grad);
    const A* t_e = kKept ? kept + begin : t_chunk;
    if (!kKept || want_t) {
      for (int64_t b = 0; b < t.blocks(); ++b) {
        if (!kKept) __builtin_prefetch(t.block(b) + row.to_next[0]);
        const V x = V::load(t.block(b)) - V(teacher.max);
        const V e = kKept ? V::load(t_e + b * kLanes) : fast_exp2(x * V(of_row.rate));
        if (!kKept) e.store(t_chunk + b * kLanes);
        if (want_t) teacher.template cross_entropy<kAnyPower>(x, e, of_row.power).store(t_result.block(b));
      }
    }
    for (int64_t k = 0; k < in.k(); ++k) {
      const StudentGradient<A>& student = students[k];
      const FrontView<A> s(row.students[k] + begin, size, s_tail);
      const FrontResult<A> s_result(want_s ? s_out[k] + begin : nullptr, size, s_grad);
      const GradientChunk<A> chunk{t,
                                   s,
                                   t_e,
                                   kKept ? kept + (1 + k) * stride + begin : nullptr,
                                   want_t ? &t_result : nullptr,
                                   want_s ? &s_result : nullptr,
                                   row.to_next[1 + k]};
      if (!kKept || options.student_to_teacher || student.near) {
        add_gradients<kAnyPower, kKept, false, true, kBytes>(chunk, of_row, teacher, student,
                                                             options.student_to_teacher);
      } else {
        with_power<A>(s_ce, options.temperature, [&](auto power) __attribute__((always_inline)) {
          if (want_t) {
            add_gradients<power, true, true, true, kBytes>(chunk, of_row, teacher, student, false);
          } else {
            add_gradients<power, true, true, false, kBytes>(chunk, of_row, teacher, student, false);
          }
        });
      }
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

// The same from the sums. `terms` holds the logarithms of what log_arguments gives, and then the row's terms.
template <int kBytes, class A>
SFTN_INLINE RowGradient<A> terms_row(const LogitsInput& in, const RowGroup<A>& group, int64_t r, const RowSums<A>* sums,
                                     const RowScale& scale, double* terms, StudentGradient<A>* students) {
  const LogitsRow<A>& row = group.rows[r];
  const LogitsOptions& options = in.options;
  const double smoothing = options.label_smoothing, mass = target_mass(row, sums, smoothing);
  const bool teacher_ce = row.has_target() && options.teacher_weight != 0;
  const RowSums<A>& teacher = sums[0];
  terms[0] = teacher_ce ? cross_entropy(row, teacher, row.teacher, mass, terms[0], smoothing, in.c) : 0;
  for (int64_t k = 0; k < in.k(); ++k) {
    const RowSums<A>& student = sums[1 + k];
    double &ce = terms[1 + 2 * k], &kl = terms[2 + 2 * k];
    const Divergence divergence = divergence_of<kBytes>(in, group, r, k, sums, kl);
    ce = row.has_target() ? cross_entropy(row, student, row.students[k], mass, ce, smoothing, in.c) : 0;
    kl = divergence.kl;
    const RowGradient<A> gradient(student.max, 1 / student.z, row.has_target() ? mass / student.z1 : 0, scale.s_ce,
                                  smoothing, in.c);
    students[k] = {gradient, A(divergence.mean), A(divergence.kl), divergence.near};
  }
  return {teacher.max, 1 / teacher.z, teacher_ce ? mass / teacher.z1 : 0, scale.t_ce, smoothing, in.c};
}

// What a row's terms are logarithms of, in their places.
template <class A>
SFTN_INLINE void log_arguments(const LogitsInput& in, const RowSums<A>* sums, double* terms) {
  const bool has_target = in.has_target();
  const RowSums<A>& teacher = sums[0];
  terms[0] = has_target && in.options.teacher_weight != 0 ? teacher.z1 : 1;
  for (int64_t k = 0; k < in.k(); ++k) {
    const RowSums<A>& student = sums[1 + k];
    terms[1 + 2 * k] = has_target ? student.z1 : 1;
    terms[2 + 2 * k] = in.options.student_to_teacher ? teacher.z / student.z : student.z / teacher.z;
  }
}

// A group's gradients.
template <class A>
struct GroupGradients {
  RowScale* scales;              // [count]
  RowGradient<A>* teachers;      // [count]
  StudentGradient<A>* students;  // [count, K]
};

// Fills in a group's maps from the sums, and writes the rows' terms [1 + 2 K], as the forward pass does. `logs` holds
// as many numbers in whole blocks.
template <int kBytes, class A>
SFTN_INLINE void terms_rows_inline(const LogitsInput& in, const RowGroup<A>& group, const RowSums<A>* sums,
                                   const GroupGradients<A>& gradients, double* logs, double* terms) {
  using V = Block<kBytes, double>;
  const int64_t width = 1 + 2 * in.k(), size = group.count * width;
  for (int64_t r = 0; r < group.count; ++r) log_arguments(in, sums + r * group.networks, logs + r * width);
  for (int64_t i = 0; i < size; i += kLanes) {
    const V x = V::load(logs + i);
    select(x == x, fast_log(x), x).store(logs + i);
  }
  std::copy(logs, logs + size, terms);
  for (int64_t r = 0; r < group.count; ++r) {
    gradients.teachers[r] = terms_row<kBytes>(in, group, r, sums + r * group.networks, gradients.scales[r],
                                              terms + r * width, gradients.students + r * in.k());
  }
}

// Rows of the requested gradients of a group whose exponentials were kept. The pointers to the results, [1] and [K],
// are moved on.
template <int kBytes, class A>
SFTN_INLINE void gradient_rows_inline(const LogitsInput& in, const RowGroup<A>& group,
                                      const GroupGradients<A>& gradients, A** t_out, A** s_out) {
  for (int64_t r = 0; r < group.count; ++r) {
    gradient_row_inline<true, kBytes>(in, group.rows[r], gradients.teachers[r], gradients.students + r * in.k(),
                                      group.at(r, 0, 0), group.stride, gradients.scales[r], t_out ? *t_out : nullptr,
                                      s_out);
    if (t_out) *t_out += in.c;
    for (int64_t k = 0; s_out && k < in.k(); ++k) s_out[k] += in.c;
  }
}

}  // namespace sftn
