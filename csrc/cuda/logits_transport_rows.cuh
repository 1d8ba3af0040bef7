// WKD's kernels over rows of logits: the marginals, and the gradients. A team reads each row twice.
#pragma once

#include "../logits_transport.h"
#include "chunk.cuh"
#include "logits_transport_elements.cuh"
#include "math.cuh"
#include "softmax.cuh"
#include "team.cuh"

namespace sftn {

template <class T>
struct TransportParams {
  using A = accumulator_t<T>;

  const T *student, *teacher;              // [N, C]
  int64_t student_stride, teacher_stride;  // between rows
  const int64_t* target;                   // [N]
  int64_t n;
  int c;
  Temperature<A> temperature;
  bool aligned;  // every row that is read or written begins at a 16-byte boundary

  TransportParams(const TransportInput& in, bool all_aligned)
      : student(in.student.data<T>()),
        teacher(in.teacher.data<T>()),
        student_stride(in.student.stride),
        teacher_stride(in.teacher.stride),
        target(const_data_of<int64_t>(in.target)),
        n(in.n),
        c(static_cast<int>(in.c)),
        aligned(all_aligned) {
    constexpr double kLog2E = 1.4426950408889634;
    temperature.value = static_cast<A>(in.temperature);
    temperature.inverse = static_cast<A>(1 / in.temperature);
    temperature.log2_e = static_cast<A>(kLog2E);
    temperature.log2_e_by_t = static_cast<A>(kLog2E / in.temperature);
    temperature.at_one = true;
  }

  __device__ int target_of(int64_t row) const {
    const int64_t target_class = target[row], num_classes = c;
    SFTN_DEVICE_ASSERT(target_class >= 0 && target_class < num_classes);
    return static_cast<int>(target_class);
  }
};

// A row of one network: the softmax over the classes other than the target, and the target's logit beside it.
template <class A>
struct TargetRow {
  Softmax<A> others;
  A logit;

  // The largest logit, and the sum of exp(x - max), of all classes.
  __device__ A max() const { return finite_max(greater(others.max, logit)); }
  __device__ A sum() const { return others.sum_one * exp_of(others.max - max()) + exp_of(logit - max()); }
};

template <class T, class Team>
__device__ __forceinline__ TargetRow<accumulator_t<T>> target_row(const TransportParams<T>& p, const T* row,
                                                                  int target) {
  using A = accumulator_t<T>;
  constexpr int kSize = kChunk<T>;
  TargetRow<A> of{{}, static_cast<A>(row[target])};
  const int step = Team::size() * kSize;
  for (int begin = 0; begin < p.c; begin += step) {
    const Chunk<T> chunk{begin, Team::rank(), Team::size(), p.c, p.aligned};
    A x[kSize], largest = of.others.max;
    chunk.load(row, x);
#pragma unroll
    for (int i = 0; i < kSize; ++i) {
      if (chunk.column(i) == target) x[i] = -static_cast<A>(INFINITY);
      largest = Max::apply(largest, x[i]);
    }
    of.others.rescale(largest, 0, p.temperature);
#pragma unroll
    for (int i = 0; i < kSize; ++i) {
      const Exponentials<A> e = p.temperature.exp(x[i] - finite_max(largest));
      of.others.sum_one += e.at_one;
      of.others.sum_t += e.at_t;
    }
  }
  A largest[1] = {of.others.max};
  Team::template reduce<Max>(largest);
  of.others.rescale(largest[0], 0, p.temperature);
  A sums[2] = {of.others.sum_one, of.others.sum_t};
  Team::template reduce<Add>(sums);
  of.others.sum_one = sums[0];
  of.others.sum_t = sums[1];
  return of;
}

// Writes the softmax at T over the classes other than the target, 0 if all of them are at -infinity.
template <class T, class Team>
__device__ __forceinline__ void write_marginal(const TransportParams<T>& p, const T* row, int target,
                                               const Softmax<accumulator_t<T>>& others, accumulator_t<T>* out) {
  using A = accumulator_t<T>;
  const A max = others.max, scale = max == -static_cast<A>(INFINITY) ? A(0) : A(1) / others.sum_t;
  for (int column = Team::rank(); column < p.c; column += Team::size()) {
    const A x = (static_cast<A>(row[column]) - finite_max(max)) * p.temperature.log2_e_by_t;
    out[column] = column == target ? A(0) : exp2_of(x) * scale;
  }
}

template <class A>
struct MarginalsOutput {
  A *source, *sink;  // [N, C]
  A* rows;           // [N, 2]
};

template <class T, class Team>
__global__ void __launch_bounds__(Team::kMaxThreads, sizeof(T) == 8 ? 1 : 2)
    wkd_marginals_kernel(const TransportParams<T> p, const MarginalsOutput<accumulator_t<T>> out) {
  using A = accumulator_t<T>;
  for (int64_t row = Team::first_row(); row < p.n; row += Team::row_step()) {
    const int target = p.target_of(row);
    const T *s_row = p.student + row * p.student_stride, *t_row = p.teacher + row * p.teacher_stride;
    const TargetRow<A> student = target_row<T, Team>(p, s_row, target), teacher = target_row<T, Team>(p, t_row, target);
    write_marginal<T, Team>(p, s_row, target, student.others, out.source + row * p.c);
    write_marginal<T, Team>(p, t_row, target, teacher.others, out.sink + row * p.c);
    if (Team::rank() == 0) {
      out.rows[2 * row] = exp_of(teacher.logit - teacher.max()) / teacher.sum();
      out.rows[2 * row + 1] = log_of(student.sum()) - (student.logit - student.max());
    }
  }
}

template <class T>
struct TransportSide {
  using A = accumulator_t<T>;
  const A *marginal, *along;  // [N, C]
  T* out;                     // [N, C], null if not requested
};

template <class T>
struct TransportBackward {
  using A = accumulator_t<T>;
  const A* grad_loss;      // []
  const A* rows;           // [N, 2]
  A inverse_n, transport;  // 1 / N, gamma / T
  TransportSide<T> student, teacher;
};

// One row's gradient of one network. `weight` is the target's term: of p, and with the other sign of the one-hot
// target.
template <class T, class Team>
__device__ __forceinline__ void write_gradient(const TransportParams<T>& p, const TransportSide<T>& side, const T* row,
                                               int64_t index, int target, accumulator_t<T> weight,
                                               accumulator_t<T> transport) {
  using A = accumulator_t<T>;
  const TargetRow<A> of = target_row<T, Team>(p, row, target);
  const A *marginal = side.marginal + index * p.c, *along = side.along + index * p.c;
  T* out = side.out + index * p.c;
  A sum[1] = {A(0)};
  for (int column = Team::rank(); column < p.c; column += Team::size()) sum[0] += along[column];
  Team::template reduce<Add>(sum);
  const A max = of.max(), by_sum = A(1) / of.sum();
  for (int column = Team::rank(); column < p.c; column += Team::size()) {
    const A probability = exp2_of((static_cast<A>(row[column]) - max) * p.temperature.log2_e) * by_sum;
    const A onehot = column == target ? A(1) : A(0);
    out[column] =
        static_cast<T>(weight * (probability - onehot) + transport * (along[column] - marginal[column] * sum[0]));
  }
}

template <class T, class Team>
__global__ void __launch_bounds__(Team::kMaxThreads, sizeof(T) == 8 ? 1 : 2)
    wkd_gradient_kernel(const TransportParams<T> p, const TransportBackward<T> out) {
  using A = accumulator_t<T>;
  const A scale = *out.grad_loss * out.inverse_n, transport = scale * out.transport;
  for (int64_t row = Team::first_row(); row < p.n; row += Team::row_step()) {
    const int target = p.target_of(row);
    const auto numbers = TargetNumbers<A>::of(out.rows, row);
    if (out.student.out != nullptr) {
      write_gradient<T, Team>(p, out.student, p.student + row * p.student_stride, row, target, scale * numbers.p_t,
                              transport);
    }
    if (out.teacher.out != nullptr) {
      write_gradient<T, Team>(p, out.teacher, p.teacher + row * p.teacher_stride, row, target, -scale * numbers.loss(),
                              transport);
    }
  }
}

}  // namespace sftn
