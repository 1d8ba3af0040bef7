// One pass over a teacher's row and the same row of up to G students. It computes the softmax statistics of each and
// the cross sums for their divergences.
#pragma once

#include "chunk.cuh"
#include "logits_params.cuh"
#include "softmax.cuh"

namespace sftn {

// A row's K students, and the `count` of them, at most G, in this pass.
template <class T, int G>
struct LogitsRow {
  const T* teacher;
  const T* students[G];
  int count;
  const accumulator_t<T>* probabilities;  // of the target, null without
};

// Over the row, with w the unnormalised probability at T of the weighting distribution:
//   cross = sum w ((t - max t) - (s - max s)), with the opposite sign if w is the student's.
// Each tensor's maximum is subtracted before the two are compared: logits that differ by a large constant lose no
// digits, and each term is zero if s = t.
template <class A, int G>
struct LogitsRowState {
  Softmax<A> teacher;
  Softmax<A> students[G];
  A cross[G] = {};
  A mass = 0;  // sum of the w by which Softmax::below weighs: u for probabilities, 1 for a smoothed class

  __device__ __forceinline__ void rescale(A teacher_max, const A (&student_max)[G], bool student_to_teacher,
                                          const Temperature<A>& temperature) {
    const A teacher_weight = teacher.sum_t, teacher_shift = finite_max(teacher.max) - finite_max(teacher_max);
    const A teacher_factor = teacher.rescale(teacher_max, mass, temperature);
#pragma unroll
    for (int g = 0; g < G; ++g) {
      Softmax<A>& student = students[g];
      const A student_weight = student.sum_t, student_shift = finite_max(student.max) - finite_max(student_max[g]);
      const A student_factor = student.rescale(student_max[g], mass, temperature);
      const A weight = student_to_teacher ? student_weight : teacher_weight;
      const A factor = student_to_teacher ? student_factor : teacher_factor;
      const A shift = student_to_teacher ? student_shift - teacher_shift : teacher_shift - student_shift;
      cross[g] = times(factor, cross[g] + times(weight, shift));
    }
  }

  template <class T>
  __device__ __forceinline__ void add(const LogitsParams<T>& p, const LogitsRow<T, G>& row, const Chunk<T>& chunk) {
    constexpr int kSize = kChunk<T>;
    const bool student_to_teacher = p.student_to_teacher;
    const Temperature<A>& temperature = p.temperature;
    A t[kSize], s[G][kSize];
    chunk.load(row.teacher, t);
#pragma unroll
    for (int g = 0; g < G; ++g) {
      if (g < row.count) chunk.load(row.students[g], s[g]);
    }

    A teacher_max = teacher.max, student_max[G];
#pragma unroll
    for (int i = 0; i < kSize; ++i) teacher_max = Max::apply(teacher_max, t[i]);
#pragma unroll
    for (int g = 0; g < G; ++g) {
      student_max[g] = students[g].max;
      if (g < row.count) {
#pragma unroll
        for (int i = 0; i < kSize; ++i) student_max[g] = Max::apply(student_max[g], s[g][i]);
      }
    }
    rescale(teacher_max, student_max, student_to_teacher, temperature);

    A teacher_exp[kSize];
#pragma unroll
    for (int i = 0; i < kSize; ++i) {
      t[i] -= finite_max(teacher.max);
      teacher_exp[i] = accumulate(teacher, t[i], temperature);
    }
#pragma unroll
    for (int g = 0; g < G; ++g) {
      if (g < row.count) {
#pragma unroll
        for (int i = 0; i < kSize; ++i) {
          s[g][i] -= finite_max(students[g].max);
          const A student_exp = accumulate(students[g], s[g][i], temperature);
          cross[g] += student_to_teacher ? times(student_exp, s[g][i] - t[i]) : times(teacher_exp[i], t[i] - s[g][i]);
        }
      }
    }

    if (row.probabilities != nullptr || p.smoothing != A(0)) {
      A weights[kSize];
      p.load_weights(row.probabilities, chunk, weights);
#pragma unroll
      for (int i = 0; i < kSize; ++i) {
        mass += weights[i];
        teacher.below -= times(weights[i], t[i]);
#pragma unroll
        for (int g = 0; g < G; ++g) {
          if (g < row.count) students[g].below -= times(weights[i], s[g][i]);
        }
      }
    }
  }

  // Joins the states of all threads of a team; each thread then has the whole row's.
  template <class Team>
  __device__ __forceinline__ void join(bool student_to_teacher, bool probabilities, const Temperature<A>& temperature) {
    A max[G + 1];
    max[G] = teacher.max;
#pragma unroll
    for (int g = 0; g < G; ++g) max[g] = students[g].max;
    Team::template reduce<Max>(max);

    A student_max[G];
#pragma unroll
    for (int g = 0; g < G; ++g) student_max[g] = max[g];
    rescale(max[G], student_max, student_to_teacher, temperature);

    A sums[4 * G + 3];
#pragma unroll
    for (int g = 0; g < G; ++g) {
      sums[4 * g] = students[g].sum_one;
      sums[4 * g + 1] = students[g].sum_t;
      sums[4 * g + 2] = students[g].below;
      sums[4 * g + 3] = cross[g];
    }
    sums[4 * G] = teacher.sum_one;
    sums[4 * G + 1] = teacher.sum_t;
    sums[4 * G + 2] = teacher.below;
    Team::template reduce<Add>(sums);
#pragma unroll
    for (int g = 0; g < G; ++g) {
      students[g].sum_one = sums[4 * g];
      students[g].sum_t = sums[4 * g + 1];
      students[g].below = sums[4 * g + 2];
      cross[g] = sums[4 * g + 3];
    }
    teacher.sum_one = sums[4 * G];
    teacher.sum_t = sums[4 * G + 1];
    teacher.below = sums[4 * G + 2];
    if (probabilities) {
      A masses[1] = {mass};
      Team::template reduce<Add>(masses);
      mass = masses[0];
    }
  }

 private:
  // Adds one logit, less the maximum. Returns its unnormalised probability at T.
  __device__ static __forceinline__ A accumulate(Softmax<A>& softmax, A x, const Temperature<A>& temperature) {
    const Exponentials<A> e = temperature.exp(x);
    softmax.sum_one += e.at_one;
    softmax.sum_t += e.at_t;
    return e.at_t;
  }
};

}  // namespace sftn
