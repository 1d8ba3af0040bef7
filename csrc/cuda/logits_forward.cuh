// Forward pass of the losses on logits; ../logits.h has the formulas.
//
// A team reads each row of teacher and students once and writes the row's statistics; the losses are summed over its
// rows, over the block's teams and over the grid, each in a fixed order.
#pragma once

#include "arrivals.cuh"
#include "grid_sum.cuh"
#include "logits_params.cuh"
#include "logits_row.cuh"

namespace sftn {

template <class T>
struct LogitsForwardOutput {
  using A = accumulator_t<T>;
  A* total;     // [], or [N]
  A* parts;     // [4]
  A* stats;     // [N, stats_width()]
  A* partials;  // [gridDim.x, 4]
  ArrivalCounter arrivals;
};

template <class A>
struct RowLosses {
  A teacher_ce = 0, student_ce = 0, kl = 0, valid = 0;  // summed over students; valid: number of rows with a class

  __device__ void add(const RowLosses& other) {
    teacher_ce += other.teacher_ce;
    student_ce += other.student_ce;
    kl += other.kl;
    valid += other.valid;
  }
};

// Of a row with a class, or with probabilities and their mass if the class is -1.
template <class T, class A>
__device__ A cross_entropy(const LogitsParams<T>& p, const Softmax<A>& softmax, const T* row, int target_class,
                           A mass) {
  if (target_class < 0) return mass * log_of(softmax.sum_one) + softmax.below;
  A loss = log_of(softmax.sum_one);
  if (p.smoothing != A(1)) {  // 0 times an infinite difference would be NaN
    loss -= (A(1) - p.smoothing) * (static_cast<A>(row[target_class]) - softmax.max);
  }
  if (p.smoothing != A(0)) loss += p.smoothing * softmax.below / A(p.c);
  return loss;
}

// KL from the mean difference of logits, which is KL without the normalisers.
template <class A>
__device__ A divergence(const Softmax<A>& teacher, const Softmax<A>& student, A mean_difference,
                        bool student_to_teacher, const Temperature<A>& temperature) {
  const A apart = log_of(student.sum_t) - log_of(teacher.sum_t);
  return mean_difference * temperature.inverse + (student_to_teacher ? -apart : apart);
}

template <class A>
__device__ void save_softmax(A* stats, const Softmax<A>& softmax) {
  stats[0] = softmax.max;
  stats[1] = log_of(softmax.sum_one);
  stats[2] = log_of(softmax.sum_t);
}

// The result of one student's row.
template <class A>
struct RowDivergence {
  A kl, mean;
  bool near;  // summed a second time, around the mean
};

// The second sum for a student's row near the teacher's, and its divergence. The whole team must call it; its branches
// depend on values that all threads share.
template <class T>
struct NearRow {
  using A = accumulator_t<T>;
  const T* student;
  A student_max, z;  // z: the sum of the weighting distribution's exponentials
  RowDivergence<A> given;

  template <class Team>
  __device__ __forceinline__ RowDivergence<A> divergence(const LogitsParams<T>& p, const T* teacher,
                                                         A teacher_max) const {
    constexpr int kSize = kChunk<T>;
    A sums[2] = {A(0), A(0)}, far[1] = {A(0)};  // sums of weight * y and weight * (exp(y) - 1 - y); the largest |y|
    const int step = Team::size() * kSize;
    for (int begin = 0; begin < p.c; begin += step) {
      const Chunk<T> chunk{begin, Team::rank(), Team::size(), p.c, p.aligned};
      A t[kSize], s[kSize];
      chunk.load(teacher, t);
      chunk.load(student, s);
#pragma unroll
      for (int i = 0; i < kSize; ++i) {
        t[i] -= teacher_max;
        s[i] -= student_max;
        const A difference = p.student_to_teacher ? s[i] - t[i] : t[i] - s[i];
        const A weight = exp2_of((p.student_to_teacher ? s[i] : t[i]) * p.temperature.log2_e_by_t);
        A y = (given.mean - difference) * p.temperature.inverse;
        if (!(y == y)) y = A(0);  // NaN for a class that both rule out
        far[0] = greater(far[0], magnitude(y));
        sums[0] += weight * y;
        sums[1] += weight * exp_remainder(y);
      }
    }
    Team::template reduce<Max>(far);
    Team::template reduce<Add>(sums);
    if (!(far[0] <= A(kNearDifference))) return given;
    const A first = sums[0] / z, rest = sums[1] / z;
    return {greater(A(0), rest + log1p_remainder(first + rest)), given.mean - first * p.temperature.value, true};
  }
};

// The divergences of a pass's students. Near students are processed one by one, so the code has one loop over the row.
template <class T, class Team, int G, class A>
__device__ __forceinline__ void row_divergences(const LogitsParams<T>& p, const LogitsRow<T, G>& row,
                                                const LogitsRowState<A, G>& state, RowDivergence<A> (&out)[G]) {
#pragma unroll
  for (int g = 0; g < G; ++g) {
    const Softmax<A>& student = state.students[g];
    const A mean = state.cross[g] / (p.student_to_teacher ? student : state.teacher).sum_t;
    out[g] = {divergence(state.teacher, student, mean, p.student_to_teacher, p.temperature), mean, false};
  }
#pragma unroll 1
  for (int k = 0; k < row.count; ++k) {
    NearRow<T> near{};
#pragma unroll
    for (int g = 0; g < G; ++g) {  // an index known to the compiler keeps arrays in registers
      const Softmax<A>& student = state.students[g];
      const A z = (p.student_to_teacher ? student : state.teacher).sum_t;
      if (g == k) near = {row.students[g], student.max, z, out[g]};
    }
    if (!(near.given.kl < A(kNearDivergence))) continue;
    const RowDivergence<A> found = near.template divergence<Team>(p, row.teacher, state.teacher.max);
#pragma unroll
    for (int g = 0; g < G; ++g) {
      if (g == k) out[g] = found;
    }
  }
}

// One thread's work on the final state of students first .. first + count.
template <class T, int G, class A>
__device__ void finish_row(const LogitsParams<T>& p, const LogitsRow<T, G>& row, const LogitsRowState<A, G>& state,
                           const RowDivergence<A> (&divergences)[G], int64_t index, int first, A* stats,
                           RowLosses<A>& losses) {
  const int target = p.class_of(index);
  const bool has_target = target >= 0 || row.probabilities != nullptr;
  if (first == 0) {
    save_softmax(stats, state.teacher);
    if (row.probabilities != nullptr) stats[p.mass_stat()] = state.mass;
    if (has_target) {
      losses.teacher_ce += cross_entropy(p, state.teacher, row.teacher, target, state.mass);
      losses.valid += A(1);
    }
  }
#pragma unroll
  for (int g = 0; g < G; ++g) {
    if (g < row.count) {
      A* of_student = stats + student_stats(first + g);
      const Softmax<A>& student = state.students[g];
      save_softmax(of_student, student);
      of_student[3] = divergences[g].mean;
      of_student[4] = divergences[g].near ? divergences[g].kl : A(-1);
      losses.kl += divergences[g].kl;
      if (has_target) losses.student_ce += cross_entropy(p, student, row.students[g], target, state.mass);
    }
  }
}

template <class T, class Team, int G>
__device__ __forceinline__ LogitsRowState<accumulator_t<T>, G> read_row(const LogitsParams<T>& p,
                                                                        const LogitsRow<T, G>& row) {
  LogitsRowState<accumulator_t<T>, G> state;
  const int step = Team::size() * kChunk<T>;
  for (int begin = 0; begin < p.c; begin += step) {
    const Chunk<T> chunk{begin, Team::rank(), Team::size(), p.c, p.aligned};
    state.add(p, row, chunk);
  }
  state.template join<Team>(p.student_to_teacher, row.probabilities != nullptr, p.temperature);
  return state;
}

// G students share a pass over the teacher's row; more students take more passes.
template <class T, class Team, int G>
__global__ void __launch_bounds__(Team::kMaxThreads, (kForwardBlocks<T, G>))
    logits_forward_kernel(const __grid_constant__ LogitsParams<T> p, const LogitsForwardOutput<T> out) {
  using A = accumulator_t<T>;
  RowLosses<A> losses;
  for (int64_t i = Team::first_row(); i < p.n; i += Team::row_step()) {
    RowLosses<A> of_row;
    for (int first = 0; first < p.k; first += G) {
      LogitsRow<T, G> row{p.teacher.row(i), {}, min(G, p.k - first), p.probabilities_of(i)};
#pragma unroll
      for (int g = 0; g < G; ++g) {
        if (g < row.count) row.students[g] = p.students[first + g].row(i);
      }
      const LogitsRowState<A, G> state = read_row<T, Team, G>(p, row);
      RowDivergence<A> divergences[G];
      row_divergences<T, Team>(p, row, state, divergences);
      if (Team::rank() == 0) finish_row(p, row, state, divergences, i, first, out.stats + i * p.stats_width(), of_row);
    }
    if (p.rows && Team::rank() == 0) out.total[i] = p.kl_weight * p.kl_scale * of_row.kl;
    losses.add(of_row);
  }

  A sums[4] = {losses.teacher_ce, losses.student_ce, losses.kl, losses.valid};
  if (grid_sum(sums, out.partials, out.arrivals.get())) {
    const A per_valid = sums[3] > A(0) ? A(1) / sums[3] : A(0);
    const A teacher_ce = sums[0] * per_valid, student_ce = p.branch_scale * sums[1] * per_valid;
    const A kl = p.kl_scale * sums[2];
    out.parts[0] = teacher_ce;
    out.parts[1] = student_ce;
    out.parts[2] = kl;
    out.parts[3] = per_valid;
    if (!p.rows) *out.total = p.teacher_weight * teacher_ce + p.ce_weight * student_ce + p.kl_weight * kl;
  }
}

}  // namespace sftn
