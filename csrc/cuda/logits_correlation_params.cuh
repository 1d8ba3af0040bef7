// Parameters and row helpers shared by DIST's kernels; ../logits_correlation.h has the formulas.
#pragma once

#include "../logits_correlation.h"
#include "chunk.cuh"
#include "math.cuh"
#include "softmax.cuh"
#include "team.cuh"

namespace sftn {

template <class T>
struct CorrelationLogits {
  const T* data;   // [N, C]
  int64_t stride;  // between rows
  __device__ const T* row(int64_t i) const { return data + i * stride; }
};

template <class T>
struct CorrelationParams {
  using A = accumulator_t<T>;

  CorrelationLogits<T> student, teacher;
  int64_t n;
  int c;
  A rate;        // log2(e) / T
  bool centred;  // columns are of a, else of p
  bool aligned;  // every row that is read or written begins at a 16-byte boundary

  CorrelationParams(const CorrelationInput& in, bool all_aligned)
      : student{in.student.data<T>(), in.student.stride},
        teacher{in.teacher.data<T>(), in.teacher.stride},
        n(in.n),
        c(static_cast<int>(in.c)),
        rate(static_cast<A>(1.4426950408889634 / in.options.temperature)),
        centred(in.options.centred()),
        aligned(all_aligned) {}
};

// A row's softmax among its numbers, of the student (0) or of the teacher (1).
template <class A>
__device__ __forceinline__ CentredSoftmax<A> softmax_of(const A* numbers, int network) {
  const A* of = numbers + 4 * network;
  return {of[0], of[1], of[2], of[3]};
}

// p and a of a logit, and the value of which columns are: rounded, so that equal rows do not differ from their mean.
template <class A>
struct CentredProbability {
  A p, a, value;

  __device__ __forceinline__ CentredProbability(A x, const CentredSoftmax<A>& row, A rate, bool centred) {
    constexpr A kLog2 = A(0.6931471805599453);
    const A y = (x - row.max) * rate, e = exp2_of(y);
    p = e * row.scale;
    const A less_base = row.base == A(0) ? e : expm1_of(y * kLog2);
    a = (less_base - row.mean) * row.scale;
    value = rounded_product(less_base - row.column_shift(centred), row.scale);
  }
};

}  // namespace sftn
