// Backward pass of the losses on logits; ../logits.h has the formulas.
//
// Rows are independent: a team reads each row of teacher and students once more, recomputes the probabilities from the
// saved statistics, and writes each gradient once.
#pragma once

#include "chunk.cuh"
#include "logits_params.cuh"
#include "math.cuh"
#include "team.cuh"

namespace sftn {

template <class T>
struct LogitsBackwardOutput {
  using A = accumulator_t<T>;
  const A* grad_total;        // [], or [N]
  int64_t grad_stride;        // 0 for []
  const A* parts;             // [4]
  const A* stats;             // [N, stats_width()]
  T* teacher;                 // [N, C], null if not requested
  T* students[kMaxStudents];  // the same
};

// A row's saved statistics of one tensor, as the gradient uses them.
template <class A>
struct SavedSoftmax {
  A max;
  A by_sum_one, by_sum_t;  // mass / sum exp(x - max), and 1 / the sum at T

  __device__ SavedSoftmax(const A* stats, A mass, const Temperature<A>& temperature)
      : max(stats[0]), by_sum_one(temperature.at_one ? mass * exp_of(-stats[1]) : A(0)), by_sum_t(exp_of(-stats[2])) {}

  // mass softmax(x), and softmax(x / T), of logits less `max`
  __device__ __forceinline__ Exponentials<A> probabilities(A x, const Temperature<A>& temperature) const {
    Exponentials<A> e = temperature.exp(x);
    e.at_one *= by_sum_one;
    e.at_t *= by_sum_t;
    return e;
  }
};

// The factors of one row's gradients, including those of the chain rule and the reductions.
template <class A>
struct RowScales {
  A kl;                      // of T dKL / dx
  A teacher_ce, student_ce;  // of dCE / dx; 0 where the row has no target
  int target;                // class, -1 without
  const A* probabilities;    // of the target, null without
  A mass;                    // sum(u) of the target, see ../logits.h

  template <class T>
  __device__ RowScales(const LogitsParams<T>& p, const LogitsBackwardOutput<T>& out, int64_t row)
      : target(p.class_of(row)), probabilities(p.probabilities_of(row)), mass(1) {
    if (probabilities != nullptr) mass = out.stats[row * p.stats_width() + p.mass_stat()];
    const A upstream = out.grad_total[row * out.grad_stride];
    const A per_row = has_target() ? upstream * out.parts[3] : A(0);
    kl = upstream * p.kl_weight * p.kl_scale * p.temperature.inverse;
    teacher_ce = per_row * p.teacher_weight;
    student_ce = per_row * p.ce_weight * p.branch_scale;
  }

  __device__ bool has_target() const { return target >= 0 || probabilities != nullptr; }

  // A chunk of the target's u. dCE / dx = mass softmax(x) - u, exactly 0 if there is one class.
  template <class T>
  __device__ __forceinline__ void load_target(const LogitsParams<T>& p, const Chunk<T>& chunk,
                                              A (&u)[kChunk<T>]) const {
    if (probabilities != nullptr) {
      p.load_distribution(probabilities, chunk, u);
    } else {
#pragma unroll
      for (int i = 0; i < kChunk<T>; ++i) u[i] = p.smoothed(chunk.column(i) == target ? A(1) : A(0));
    }
  }
};

// One chunk of one row: every student's gradient, then the teacher's, to which all students add.
template <class T>
__device__ __forceinline__ void backward_chunk(const LogitsParams<T>& p, const LogitsBackwardOutput<T>& out,
                                               const Chunk<T>& chunk, int64_t row,
                                               const SavedSoftmax<accumulator_t<T>>& teacher,
                                               const RowScales<accumulator_t<T>>& scales) {
  using A = accumulator_t<T>;
  constexpr int kSize = kChunk<T>;
  const bool has_target = scales.has_target();
  const A* stats = out.stats + row * p.stats_width();

  A u[kSize], t[kSize], t_at_t[kSize], t_grad[kSize];
  scales.load_target(p, chunk, u);
  chunk.load(p.teacher.row(row), t);
#pragma unroll
  for (int i = 0; i < kSize; ++i) {
    t[i] -= teacher.max;
    const Exponentials<A> q = teacher.probabilities(t[i], p.temperature);
    t_at_t[i] = q.at_t;
    t_grad[i] = A(0);
    if (has_target) t_grad[i] = scales.teacher_ce * (q.at_one - u[i]);
  }

  for (int k = 0; k < p.k; ++k) {
    const A* of_student = stats + student_stats(k);
    const SavedSoftmax<A> student(of_student, scales.mass, p.temperature);
    const A mean_difference = of_student[3], near_kl = of_student[4];
    A s[kSize];
    chunk.load(p.students[k].row(row), s);
#pragma unroll
    for (int i = 0; i < kSize; ++i) {
      s[i] -= student.max;
      const Exponentials<A> q = student.probabilities(s[i], p.temperature);
      A s_grad = A(0);
      if (has_target) s_grad = scales.student_ce * (q.at_one - u[i]);
      // for the weighting distribution: q (log q - log other - KL); for the other: its q less the first's, which is
      // the first's times exp(log ratio) - 1 if the two are near
      const A difference = p.student_to_teacher ? s[i] - t[i] : t[i] - s[i];
      const A log_ratio_less_kl = (difference - mean_difference) * p.temperature.inverse;
      const A weight = p.student_to_teacher ? q.at_t : t_at_t[i];
      A followed_less_weight = p.student_to_teacher ? t_at_t[i] - q.at_t : q.at_t - t_at_t[i];
      if (near_kl >= A(0)) {
        const A log_ratio = -log_ratio_less_kl - near_kl;
        followed_less_weight = times(weight, log_ratio + exp_remainder(log_ratio));
      }
      if (p.student_to_teacher) {
        s_grad += scales.kl * times(q.at_t, log_ratio_less_kl);
        t_grad[i] += scales.kl * followed_less_weight;
      } else {
        s_grad += scales.kl * followed_less_weight;
        t_grad[i] += scales.kl * times(t_at_t[i], log_ratio_less_kl);
      }
      s[i] = s_grad;
    }
    if (out.students[k] != nullptr) chunk.store(out.students[k] + row * p.c, s);
  }
  if (out.teacher != nullptr) chunk.store(out.teacher + row * p.c, t_grad);
}

template <class T, class Team>
__global__ void __launch_bounds__(Team::kMaxThreads, kBackwardBlocks<T>)
    logits_backward_kernel(const __grid_constant__ LogitsParams<T> p,
                           const __grid_constant__ LogitsBackwardOutput<T> out) {
  using A = accumulator_t<T>;
  for (int64_t row = Team::first_row(); row < p.n; row += Team::row_step()) {
    const RowScales<A> scales(p, out, row);
    const SavedSoftmax<A> teacher(out.stats + row * p.stats_width(), scales.mass, p.temperature);
    const int step = Team::size() * kChunk<T>;
    for (int begin = 0; begin < p.c; begin += step) {
      backward_chunk(p, out, Chunk<T>{begin, Team::rank(), Team::size(), p.c, p.aligned}, row, teacher, scales);
    }
  }
}

}  // namespace sftn
