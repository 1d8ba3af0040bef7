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
  bool aligned;  // every row that is read or written begins at a 16-byte boundary

  CorrelationParams(const CorrelationInput& in, bool all_aligned)
      : student{in.student.data<T>(), in.student.stride},
        teacher{in.teacher.data<T>(), in.teacher.stride},
        n(in.n),
        c(static_cast<int>(in.c)),
        rate(static_cast<A>(1.4426950408889634 / in.options.temperature)),
        aligned(all_aligned) {}
};

// The numbers by which a row's logits become probabilities.
template <class A>
struct RowSoftmax {
  A max, scale;

  __device__ __forceinline__ A operator()(A x, A rate) const { return exp2_of((x - max) * rate) * scale; }
};

}  // namespace sftn
