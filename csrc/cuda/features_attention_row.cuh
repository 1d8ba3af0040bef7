// The difference of two rows of Q values, both scaled to norm 1; ../features_attention.h has the formulas. A row is a
// sample's attention, in the accumulator's type, or its whole factor.
#pragma once

#include <cfloat>

#include "arrivals.cuh"
#include "features_attention_plan.cuh"
#include "grid_sum.cuh"
#include "math.cuh"

namespace sftn::attention {

// Most threads of a block. A block reads a sample's row, which is large if it is a whole factor: 64 blocks have enough
// loads in flight for all of the memory's bandwidth, and a second launch to use more would take longer than it saves.
constexpr int kRowThreads = 1024;

// phi'(d)
template <class A>
__device__ __forceinline__ A slope_of_difference(A d, bool absolute) {
  return absolute ? A(d > 0) - A(d < 0) : 2 * d;
}

// Factors that scale rows to norm 1, from a sample's norms.
template <class A>
struct UnitRows {
  A by_norm_s, by_norm_t, ratio;

  __device__ UnitRows(A norm_s, A norm_t) : by_norm_s(1 / norm_s), by_norm_t(1 / norm_t), ratio(norm_s / norm_t) {
    constexpr A kMax = sizeof(A) == 8 ? DBL_MAX : FLT_MAX;
    if (ratio > kMax) ratio = kMax;  // an infinite ratio times zero would be NaN
  }

  // y_s - y_t. Exactly 0 for equal rows, also if the compiler fuses a product and a difference into one rounding.
  __device__ __forceinline__ A difference(A a_s, A a_t) const { return (a_s - a_t * ratio) * by_norm_s; }
};

// scale * dloss / da of one of the two rows, element by element, without the factor 1 / (N Q).
template <class A>
struct RowGradient {
  UnitRows<A> unit;
  A factor, along;
  bool teacher, absolute;

  __device__ RowGradient(const A* stats, A scale, bool of_teacher, bool is_absolute)
      : unit(stats[0], stats[1]), teacher(of_teacher), absolute(is_absolute) {
    factor = teacher ? -scale * unit.by_norm_t : scale * unit.by_norm_s;
    along = teacher ? stats[3] * unit.by_norm_t : stats[2] * unit.by_norm_s;
  }

  __device__ __forceinline__ A operator()(A a_s, A a_t) const {
    return factor * (slope_of_difference(unit.difference(a_s, a_t), absolute) - (teacher ? a_t : a_s) * along);
  }
};

template <class R>
struct RowParams {
  using A = accumulator_t<R>;
  const R* student;  // [student_slices, N, Q]: a row is the sum of its slices
  const R* teacher;  // [teacher_slices, N, Q]
  int student_slices, teacher_slices;
  R* sums;  // [2, N, Q], null if there is one slice of each
  int64_t n, q;
  A mean;  // 1 / (N Q)
  bool absolute;
  A* stats;     // [N, 4]
  A* loss;      // []
  A* partials;  // [gridDim.x, 1]
  ArrivalCounter arrivals;
};

template <int V, class R, class A>
__device__ __forceinline__ void sum_slices(const R* rows, int slices, int64_t slice_step, R* sum, A (&values)[V]) {
  load_adjacent(rows, values);
  for (int slice = 1; slice < slices; ++slice) {
    A more[V];
    load_adjacent(rows + slice * slice_step, more);
#pragma unroll
    for (int v = 0; v < V; ++v) values[v] += more[v];
  }
  if (sum != nullptr) store_adjacent(sum, values);
}

// One block for each sample: norms, then the loss and the numbers for the gradient. V: values of a row in each access.
template <class R, int V>
__global__ void __launch_bounds__(kRowThreads, 1) compare_rows_kernel(const __grid_constant__ RowParams<R> p) {
  using A = accumulator_t<R>;
  const int64_t all = p.n * p.q, first = int64_t(threadIdx.x) * V, step = int64_t(blockDim.x) * V;
  A total[1] = {0};
  for (int64_t i = blockIdx.x; i < p.n; i += gridDim.x) {
    const R *s = p.student + i * p.q, *t = p.teacher + i * p.q;
    R* s_sum = p.sums != nullptr ? p.sums + i * p.q : nullptr;
    R* t_sum = p.sums != nullptr ? p.sums + all + i * p.q : nullptr;
    A squares[2] = {0, 0};
#pragma unroll(V > 1 ? 2 : 4)
    for (int64_t j = first; j < p.q; j += step) {
      A a[V], b[V];
      sum_slices<V>(s + j, p.student_slices, all, s_sum != nullptr ? s_sum + j : nullptr, a);
      sum_slices<V>(t + j, p.teacher_slices, all, t_sum != nullptr ? t_sum + j : nullptr, b);
#pragma unroll
      for (int v = 0; v < V; ++v) {
        squares[0] += a[v] * a[v];
        squares[1] += b[v] * b[v];
      }
    }
    block_reduce<Add>(squares);
    const A norm_s = sqrt_of(squares[0]), norm_t = sqrt_of(squares[1]), floor = A(kNormFloor);
    const bool floored_s = norm_s < floor, floored_t = norm_t < floor;  // a norm of NaN stays NaN
    const UnitRows<A> unit(floored_s ? floor : norm_s, floored_t ? floor : norm_t);

    if (s_sum != nullptr) {  // each thread reads what it wrote itself
      s = s_sum;
      t = t_sum;
    }
    A sums[3] = {0, 0, 0};
#pragma unroll(V > 1 ? 2 : 4)
    for (int64_t j = first; j < p.q; j += step) {
      A a[V], b[V];
      load_adjacent(s + j, a);
      load_adjacent(t + j, b);
#pragma unroll
      for (int v = 0; v < V; ++v) {
        const A d = unit.difference(a[v], b[v]), slope = slope_of_difference(d, p.absolute);
        sums[0] += p.absolute ? magnitude(d) : d * d;
        sums[1] += slope * (a[v] * unit.by_norm_s);
        sums[2] += slope * (b[v] * unit.by_norm_t);
      }
    }
    block_reduce<Add>(sums);
    if (threadIdx.x == 0) {
      A* stats = p.stats + 4 * i;
      stats[0] = floored_s ? floor : norm_s;
      stats[1] = floored_t ? floor : norm_t;
      stats[2] = floored_s ? A(0) : sums[1];
      stats[3] = floored_t ? A(0) : sums[2];
      total[0] += sums[0];
    }
  }
  if (grid_sum(total, p.partials, p.arrivals.get())) *p.loss = total[0] * p.mean;
}

template <class T>
struct FactorGradParams {
  using A = accumulator_t<T>;
  const T *student, *teacher;  // [N, Q]
  const A* grad_loss;          // []
  const A* stats;              // [N, 4]
  int64_t q, blocks_per_row;
  A mean;  // 1 / (N Q)
  bool absolute;
  T *student_grad, *teacher_grad;  // [N, Q], null if not requested
};

// If a sample is its own row, its gradient is the row's.
template <class T, int V>
__global__ void __launch_bounds__(kMapThreads, 1)
    factor_backward_kernel(const __grid_constant__ FactorGradParams<T> p) {
  using A = accumulator_t<T>;
  const int64_t i = blockIdx.x / p.blocks_per_row, block = blockIdx.x % p.blocks_per_row;
  const A scale = *p.grad_loss * p.mean;
  const RowGradient<A> of_student(p.stats + 4 * i, scale, false, p.absolute);
  const RowGradient<A> of_teacher(p.stats + 4 * i, scale, true, p.absolute);
  const int64_t step = p.blocks_per_row * kMapThreads * V;
  for (int64_t j = (block * kMapThreads + threadIdx.x) * V; j < p.q; j += step) {
    A a[V], b[V], grad[V];
    load_adjacent(p.student + i * p.q + j, a);
    load_adjacent(p.teacher + i * p.q + j, b);
    if (p.student_grad != nullptr) {
#pragma unroll
      for (int v = 0; v < V; ++v) grad[v] = of_student(a[v], b[v]);
      store_adjacent(p.student_grad + i * p.q + j, grad);
    }
    if (p.teacher_grad != nullptr) {
#pragma unroll
      for (int v = 0; v < V; ++v) grad[v] = of_teacher(a[v], b[v]);
      store_adjacent(p.teacher_grad + i * p.q + j, grad);
    }
  }
}

}  // namespace sftn::attention
