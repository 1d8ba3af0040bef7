// One row of the losses on logits, forward and backward; ../logits.h has the formulas.
//
// A row is read from memory once: its maximum, then its sums, chunk by chunk while the row is in the cache.
#pragma once

#include <cmath>
#include <vector>

#include "../logits.h"
#include "chunk.h"
#include "exp.h"

namespace sftn {

// exp(x) = exp(x / T)^T needs only products when T is a small power of two: their number, or -1.
inline int squarings_of(double temperature) {
  for (int squarings = 0; squarings <= 3; ++squarings) {
    if (temperature == (1 << squarings)) return squarings;
  }
  return -1;
}

template <class T>
struct LogitsRows {
  const LogitsInput& in;
  const T* teacher;
  std::vector<const T*> students;
  const int64_t* target;
  int squarings;  // see exp_at_one

  explicit LogitsRows(const LogitsInput& input)
      : in(input),
        teacher(input.teacher.data<T>()),
        target(input.target_data()),
        squarings(squarings_of(input.options.temperature)) {
    for (const Matrix& student : input.students) students.push_back(student.data<T>());
  }
  const T* teacher_row(int64_t i) const { return teacher + i * in.teacher.stride; }
  const T* student_row(int64_t k, int64_t i) const { return students[k] + i * in.students[k].stride; }
};

// e1 = exp(x), from e = exp(x / T): by so many squarings if T is a small power of two, else (-1) anew.
template <class A>
SFTN_INLINE void exp_at_one(const A* x, const A* e, int squarings, A* e1) {
  if (squarings < 0) {
    SFTN_LANES e1[l] = fast_exp(x[l]);
    return;
  }
  SFTN_LANES e1[l] = e[l];
  for (int i = 0; i < squarings; ++i) {
    SFTN_LANES e1[l] *= e1[l];
  }
}

// ---- forward ----

template <class T>
SFTN_INLINE accumulator_t<T> max_of(const T* row, int64_t c, ChunkBuffer<accumulator_t<T>>& buffer) {
  using A = accumulator_t<T>;
  Lanes<A> max(-std::numeric_limits<A>::infinity());
  for (int64_t begin = 0; begin < c; begin += kChunk) {
    const ChunkView<A> view(row + begin, std::min(kChunk, c - begin), buffer);
    for (int64_t b = 0; b < view.blocks(); ++b) {
      const A* x = view.block(b);
      SFTN_LANES max.lane[l] = x[l] > max.lane[l] ? x[l] : max.lane[l];
    }
  }
  return max.max();
}

// Of one row, relative to its maximum.
template <class A>
struct RowSums {
  A max = 0;
  double z = 0;      // sum exp((x - max) / T)
  double z1 = 0;     // sum exp(x - max)
  double below = 0;  // sum (x - max), for label smoothing
  double dot = 0;    // students: sum of weight * difference, see add_student
};

template <class A>
SFTN_INLINE void add_below(RowSums<A>& sums, const ChunkView<A>& view, int64_t size) {
  for (int64_t j = 0; j < size; ++j) sums.below += view.block(j / kLanes)[j % kLanes] - sums.max;
}

// Adds a chunk of the teacher to its sums and leaves exp((t - max) / T) in `weights`.
template <class A>
SFTN_INLINE void add_teacher(RowSums<A>& sums, const ChunkView<A>& view, A inv_t, bool with_one, int squarings,
                             A* weights) {
  Lanes<A> z(0), z1(0);
  const A max = sums.max;
  for (int64_t b = 0; b < view.blocks(); ++b) {
    const A* t = view.block(b);
    A* e = weights + b * kLanes;
    alignas(64) A x[kLanes], e1[kLanes];
    SFTN_LANES {
      x[l] = t[l] - max;
      e[l] = fast_exp(x[l] * inv_t);
      z.lane[l] += e[l];
    }
    if (with_one) {
      exp_at_one(x, e, squarings, e1);
      SFTN_LANES z1.lane[l] += e1[l];
    }
  }
  sums.z += z.sum();
  sums.z1 += z1.sum();
}

// Adds a chunk of a student to its sums, and to its dot the sum over classes of weight * difference of the two logits
// to their maxima: the teacher's weights and t - s, or the student's and s - t. No weight means no contribution,
// however large the difference.
template <bool kStudentWeighs, class A>
SFTN_INLINE void add_student(RowSums<A>& sums, const ChunkView<A>& view, A inv_t, bool with_one, int squarings,
                             const ChunkView<A>& teacher, A t_max, const A* t_weights) {
  Lanes<A> z(0), z1(0), dot(0);
  const A max = sums.max;
  for (int64_t b = 0; b < view.blocks(); ++b) {
    const A *s = view.block(b), *t = teacher.block(b), *t_e = t_weights + b * kLanes;
    alignas(64) A x[kLanes], e[kLanes], e1[kLanes];
    SFTN_LANES {
      x[l] = s[l] - max;
      e[l] = fast_exp(x[l] * inv_t);
      z.lane[l] += e[l];
      const A apart = (t[l] - t_max) - x[l], weight = kStudentWeighs ? e[l] : t_e[l];
      dot.lane[l] += weight == 0 ? A(0) : weight * (kStudentWeighs ? -apart : apart);
    }
    if (with_one) {
      exp_at_one(x, e, squarings, e1);
      SFTN_LANES z1.lane[l] += e1[l];
    }
  }
  sums.z += z.sum();
  sums.z1 += z1.sum();
  sums.dot += dot.sum();
}

// CE = logsumexp(x) - (1 - smoothing) x_y - smoothing mean(x), from differences to the maximum
template <class A>
SFTN_INLINE double cross_entropy(const RowSums<A>& sums, A at_target, double log_z1, double smoothing, int64_t c) {
  const double loss = log_z1 - (1 - smoothing) * (double(at_target) - double(sums.max));
  return smoothing == 0 ? loss : loss - smoothing * sums.below / c;
}

// One row's statistics to `stats` [3 + 4 K] and its terms to `terms` [1 + 2 K]: CE of the teacher, then CE and KL of
// each student. `sums` [1 + K] is scratch.
template <class T>
SFTN_INLINE void forward_row(const LogitsRows<T>& rows, int64_t i, accumulator_t<T>* stats, double* terms,
                             RowSums<accumulator_t<T>>* sums) {
  using A = accumulator_t<T>;
  const LogitsOptions& options = rows.in.options;
  const int64_t c = rows.in.c, k_count = rows.in.k();
  const A inv_t = A(1 / options.temperature);
  const bool with_one = rows.target != nullptr, smooth = with_one && options.label_smoothing != 0;
  ChunkBuffer<A> t_buffer, s_buffer;
  alignas(64) A t_weights[kChunk];

  RowSums<A>& teacher = sums[0];
  RowSums<A>* students = sums + 1;
  teacher = {max_of(rows.teacher_row(i), c, t_buffer)};
  for (int64_t k = 0; k < k_count; ++k) students[k] = {max_of(rows.student_row(k, i), c, s_buffer)};
  for (int64_t begin = 0; begin < c; begin += kChunk) {
    const int64_t size = std::min(kChunk, c - begin);
    const ChunkView<A> t(rows.teacher_row(i) + begin, size, t_buffer);
    add_teacher(teacher, t, inv_t, with_one, rows.squarings, t_weights);
    if (smooth) add_below(teacher, t, size);
    for (int64_t k = 0; k < k_count; ++k) {
      const ChunkView<A> s(rows.student_row(k, i) + begin, size, s_buffer);
      if (options.student_to_teacher) {
        add_student<true>(students[k], s, inv_t, with_one, rows.squarings, t, teacher.max, t_weights);
      } else {
        add_student<false>(students[k], s, inv_t, with_one, rows.squarings, t, teacher.max, t_weights);
      }
      if (smooth) add_below(students[k], s, size);
    }
  }

  const int64_t y = with_one ? rows.target[i] : options.ignore_index;
  const bool has_target = with_one && y != options.ignore_index;
  const double t_log_z = std::log(teacher.z), t_log_z1 = with_one ? std::log(teacher.z1) : 0;
  stats[0] = teacher.max;
  stats[1] = A(t_log_z1);
  stats[2] = A(t_log_z);
  const auto ce = [&](const RowSums<A>& of, const T* row, double log_z1) {
    return has_target ? cross_entropy(of, value_of(row[y]), log_z1, options.label_smoothing, c) : 0;
  };
  terms[0] = ce(teacher, rows.teacher_row(i), t_log_z1);
  for (int64_t k = 0; k < k_count; ++k) {
    const RowSums<A>& student = students[k];
    const double s_log_z = std::log(student.z), s_log_z1 = with_one ? std::log(student.z1) : 0;
    const double mean = student.dot / (options.student_to_teacher ? student.z : teacher.z);
    const double normalisers = options.student_to_teacher ? t_log_z - s_log_z : s_log_z - t_log_z;
    A* of_student = stats + 3 + 4 * k;
    of_student[0] = student.max;
    of_student[1] = A(s_log_z1);
    of_student[2] = A(s_log_z);
    of_student[3] = A(mean);
    terms[1 + 2 * k] = ce(student, rows.student_row(k, i), s_log_z1);
    terms[2 + 2 * k] = mean / options.temperature + normalisers;
  }
}

// ---- backward ----

// The factors of a row's gradients, the chain rule's and the reduction's included.
struct RowScale {
  double kl;          // of T dKL/dx, T the temperature
  double t_ce, s_ce;  // of p - (1 - smoothing) onehot - smoothing / C; 0 where the row has no target
  int64_t y;          // class, -1 without
};

// What turns one row's logits into probabilities and the gradient of its cross-entropy.
template <class A>
struct SavedRow {
  A max, inv_z, ce_scale, uniform;  // softmax(x / T) = e inv_z; gradient = e1 ce_scale - uniform

  SFTN_INLINE SavedRow(const A* stats, bool with_ce, double ce, double smoothing, int64_t c)
      : max(stats[0]),
        inv_z(A(std::exp(-double(stats[2])))),
        ce_scale(with_ce ? A(ce * std::exp(-double(stats[1]))) : A(0)),
        uniform(A(ce * smoothing / c)) {}

  // q = softmax(x / T) of a block, and grad = the cross-entropy's gradient but for its target, or 0 without one
  SFTN_INLINE void probabilities(const A* logits, A inv_t, int squarings, bool with_ce, A* x, A* q, A* grad) const {
    alignas(64) A e[kLanes];
    SFTN_LANES {
      x[l] = logits[l] - max;
      e[l] = fast_exp(x[l] * inv_t);
      q[l] = e[l] * inv_z;
      grad[l] = 0;
    }
    if (with_ce) {
      exp_at_one(x, e, squarings, grad);
      SFTN_LANES grad[l] = grad[l] * ce_scale - uniform;
    }
  }
};

// Gradient of the divergence to the distribution that weighs it: scale q (d - mean of d) with d the difference of the
// two logits to their maxima. That is q (log q - log other - KL) less what cancels, which at logits of 1e4 is all of
// float's digits. No probability means no gradient, however far the other is.
template <class A>
SFTN_INLINE void add_weighing(A* grad, A scale, const A* q, const A* x, const A* other, A mean) {
  SFTN_LANES grad[l] += q[l] == 0 ? A(0) : scale * q[l] * ((x[l] - other[l]) - mean);
}

// Gradient of the divergence to the other distribution.
template <class A>
SFTN_INLINE void add_followed(A* grad, A scale, const A* q, const A* weight) {
  SFTN_LANES grad[l] += scale * (q[l] - weight[l]);
}

template <class T>
struct LogitsGradRows {
  using A = accumulator_t<T>;
  const A* grad_total;
  int64_t grad_stride;
  const A* stats;
  double inv_valid;
  T* teacher_out;
  std::vector<T*> student_outs;

  LogitsGradRows(const LogitsInput& in, const LogitsGrad& grad)
      : grad_total(static_cast<const A*>(grad.grad_total.const_data_ptr())),
        grad_stride(grad.grad_stride),
        stats(static_cast<const A*>(grad.stats.const_data_ptr())),
        inv_valid(static_cast<const A*>(grad.parts.const_data_ptr())[3]),
        teacher_out(grad.teacher_out<T>()) {
    for (int64_t k = 0; k < in.k(); ++k) student_outs.push_back(grad.student_out<T>(k));
  }
};

// One row of every gradient that is asked for.
template <class T>
SFTN_INLINE void backward_row(const LogitsRows<T>& rows, const LogitsGradRows<T>& grad, int64_t i,
                              const RowScale& scale) {
  using A = accumulator_t<T>;
  const LogitsOptions& options = rows.in.options;
  const int64_t c = rows.in.c, k_count = rows.in.k();
  const double smoothing = options.label_smoothing;
  const A inv_t = A(1 / options.temperature), kl = A(scale.kl), weighing = A(scale.kl / options.temperature);
  const bool want_t = grad.teacher_out != nullptr, want_s = grad.student_outs[0] != nullptr;
  const bool t_ce = want_t && scale.y >= 0, s_ce = want_s && scale.y >= 0;
  const A* stats = grad.stats + i * rows.in.stats_width();
  const SavedRow<A> teacher(stats, t_ce, scale.t_ce, smoothing, c);
  ChunkBuffer<A> t_buffer, s_buffer, t_grad, s_grad;
  alignas(64) A t_q[kChunk], t_x[kChunk], t_unwanted[kLanes], s_unwanted[kLanes];

  for (int64_t begin = 0; begin < c; begin += kChunk) {
    const int64_t size = std::min(kChunk, c - begin), y = scale.y - begin;
    const ChunkView<A> t(rows.teacher_row(i) + begin, size, t_buffer);
    const ChunkResult<T> t_out(want_t ? grad.teacher_out + i * c + begin : nullptr, size, t_grad);
    for (int64_t b = 0; b < t.blocks(); ++b) {
      teacher.probabilities(t.block(b), inv_t, rows.squarings, t_ce, t_x + b * kLanes, t_q + b * kLanes,
                            want_t ? t_out.block(b) : t_unwanted);
    }
    for (int64_t k = 0; k < k_count; ++k) {
      const A* of_student = stats + 3 + 4 * k;
      const A mean = of_student[3];
      const SavedRow<A> student(of_student, s_ce, scale.s_ce, smoothing, c);
      const ChunkView<A> s(rows.student_row(k, i) + begin, size, s_buffer);
      const ChunkResult<T> s_out(want_s ? grad.student_outs[k] + i * c + begin : nullptr, size, s_grad);
      for (int64_t b = 0; b < s.blocks(); ++b) {
        alignas(64) A x[kLanes], q[kLanes];
        A* s_to = want_s ? s_out.block(b) : s_unwanted;
        A* t_to = want_t ? t_out.block(b) : t_unwanted;
        const A *of_t = t_x + b * kLanes, *weights = t_q + b * kLanes;
        student.probabilities(s.block(b), inv_t, rows.squarings, s_ce, x, q, s_to);
        if (options.student_to_teacher) {
          add_weighing(s_to, weighing, q, x, of_t, mean);
          if (want_t) add_followed(t_to, kl, weights, q);
        } else {
          add_followed(s_to, kl, q, weights);
          if (want_t) add_weighing(t_to, weighing, weights, of_t, x, mean);
        }
      }
      if (want_s) {
        if (y >= 0 && y < size) s_out.at(y) -= A(scale.s_ce * (1 - smoothing));
        s_out.store();
      }
    }
    if (want_t) {
      if (y >= 0 && y < size) t_out.at(y) -= A(scale.t_ce * (1 - smoothing));
      t_out.store();
    }
  }
}

}  // namespace sftn
