// Parameters of the logits kernels, passed by value so that a launch needs no extra copy.
#pragma once

#include "../logits.h"
#include "chunk.cuh"
#include "softmax.cuh"

namespace sftn {

// The number of students in one launch. Their pointers fit the 4 KB limit of kernel parameters.
constexpr int kMaxStudents = 64;

// Blocks of a multiprocessor at once, for G students in a pass: the compiler fits registers to them, the grid its size.
template <class T, int G>
constexpr int kForwardBlocks = sizeof(T) == 8 || G > 2 ? 1
                               : G == 2                ? 2
                                                       : 3;
template <class T>
constexpr int kBackwardBlocks = sizeof(T) == 8 ? 1 : 2;

template <class T>
struct Rows {
  const T* data;   // [N, C]
  int64_t stride;  // between rows
  __device__ const T* row(int64_t i) const { return data + i * stride; }
};

template <class T>
struct LogitsParams {
  using A = accumulator_t<T>;

  Rows<T> teacher;
  Rows<T> students[kMaxStudents];
  const int64_t* classes;  // [N], null without
  Rows<A> probabilities;   // [N, C], null without
  int64_t n, ignore_index;
  int c, k;

  Temperature<A> temperature;
  A teacher_weight, ce_weight, kl_weight, branch_scale, kl_scale, smoothing;
  bool student_to_teacher, rows;
  bool aligned;  // every row of logits that is read or written begins at a 16-byte boundary
  bool aligned_probabilities;

  LogitsParams(const LogitsInput& in, bool all_aligned, bool probabilities_aligned)
      : teacher{in.teacher.data<T>(), in.teacher.stride},
        students{},
        classes(in.class_data()),
        probabilities{nullptr, 0},
        n(in.n),
        ignore_index(in.options.ignore_index),
        c(static_cast<int>(in.c)),
        k(static_cast<int>(in.k())),
        aligned(all_aligned),
        aligned_probabilities(probabilities_aligned) {
    if (in.probabilities) probabilities = {in.probabilities->template data<A>(), in.probabilities->stride};
    for (int i = 0; i < k; ++i) students[i] = {in.students[i].data<T>(), in.students[i].stride};
    const LogitsOptions& options = in.options;
    constexpr double kLog2E = 1.4426950408889634;
    temperature.value = static_cast<A>(options.temperature);
    temperature.inverse = static_cast<A>(1 / options.temperature);
    temperature.log2_e = static_cast<A>(kLog2E);
    temperature.log2_e_by_t = static_cast<A>(kLog2E / options.temperature);
    temperature.at_one = in.has_target();
    teacher_weight = static_cast<A>(options.teacher_weight);
    ce_weight = static_cast<A>(options.ce_weight);
    kl_weight = static_cast<A>(options.kl_weight);
    branch_scale = static_cast<A>(options.branch_scale);
    kl_scale = static_cast<A>(options.kl_scale);
    smoothing = static_cast<A>(options.label_smoothing);
    student_to_teacher = options.student_to_teacher;
    rows = options.rows;
  }

  __device__ int mass_stat() const { return 3 + 5 * k; }
  __device__ int stats_width() const { return mass_stat() + (probabilities.data != nullptr ? 1 : 0); }

  // A row of the target's probabilities, null if the target has none.
  __device__ const A* probabilities_of(int64_t row) const {
    return probabilities.data == nullptr ? nullptr : probabilities.row(row);
  }

  // A chunk of the weights w of Softmax::below; 0 beyond the row.
  __device__ __forceinline__ void load_weights(const A* of_row, const Chunk<T>& chunk, A (&w)[kChunk<T>]) const {
    if (of_row != nullptr) {
      load_distribution(of_row, chunk, w);
    } else {
#pragma unroll
      for (int i = 0; i < kChunk<T>; ++i) w[i] = chunk.column(i) < c ? A(1) : A(0);
    }
  }

  // A chunk of u = (1 - smoothing) y + smoothing / C of a row's probabilities; 0 beyond the row.
  __device__ __forceinline__ void load_distribution(const A* of_row, const Chunk<T>& chunk, A (&u)[kChunk<T>]) const {
    chunk.load_beside(of_row, aligned_probabilities, A(0), u);
#pragma unroll
    for (int i = 0; i < kChunk<T>; ++i) u[i] = chunk.column(i) < c ? smoothed(u[i]) : A(0);
  }

  __device__ __forceinline__ A smoothed(A y) const { return y + smoothing * (A(1) / A(c) - y); }

  // The row's class, -1 if it has none.
  __device__ int class_of(int64_t row) const {
    if (classes == nullptr || classes[row] == ignore_index) return -1;
    const int64_t target_class = classes[row], num_classes = c;
    SFTN_DEVICE_ASSERT(target_class >= 0 && target_class < num_classes);
    return static_cast<int>(target_class);
  }
};

// The offset of student k in a row of `stats`.
__device__ __forceinline__ int student_stats(int k) { return 3 + 5 * k; }

}  // namespace sftn
