// SP; ../relational_similarity.h has the formulas.
#pragma once

#include "relational_similarity_row.cuh"

namespace sftn {

// Student or teacher, and the slope's numbers of each row, [B] each.
template <class A>
struct SpSide {
  SimilarityGram<A> gram;
  A* norm;    // n
  A* along;   // q
  A* factor;  // 2 / (B^2 n), or 0
};

template <class A>
__device__ __forceinline__ A at_least_eps(A norm) {
  return norm < A(kSpEps) ? A(kSpEps) : norm;  // NaN stays NaN
}

template <class A>
__device__ __forceinline__ void sp_store_row(const SpSide<A>& side, int i, int n, A norm, A along) {
  const A divisor = at_least_eps(norm);
  side.norm[i] = divisor;
  side.along[i] = norm < A(kSpEps) ? A(0) : along;
  side.factor[i] = norm == A(0) ? A(0) : A(2) / (A(n) * A(n)) / divisor;
}

// Reads each row twice: its norms, then the loss and the slope's numbers.
template <class A>
__global__ void __launch_bounds__(kSimilarityThreads)
    sp_rows_kernel(const SpSide<A> student, const SpSide<A> teacher, int n, const SimilarityMean<A> out) {
  const int i = blockIdx.x;
  const A *s = student.gram.row(i), *t = teacher.gram.row(i);
  A norms[2] = {A(0), A(0)};
  over_columns(n, [&](int j) {
    norms[0] += s[j] * s[j];
    norms[1] += t[j] * t[j];
  });
  block_reduce<Add>(norms);
  norms[0] = sqrt_of(norms[0]);
  norms[1] = sqrt_of(norms[1]);

  const A s_divisor = at_least_eps(norms[0]), t_divisor = at_least_eps(norms[1]);
  A loss = 0, along[2] = {A(0), A(0)};
  over_columns(n, [&](int j) {
    const A s_unit = s[j] / s_divisor, t_unit = t[j] / t_divisor, apart = s_unit - t_unit;
    loss += apart * apart;
    along[0] += apart * s_unit;
    along[1] -= apart * t_unit;
  });
  block_reduce<Add>(along);
  if (threadIdx.x == 0) {
    sp_store_row(student, i, n, norms[0], along[0]);
    sp_store_row(teacher, i, n, norms[1], along[1]);
  }
  store_similarity_mean(loss, n, out);
}

// Row i of the slope of `side`.
template <class A>
__global__ void __launch_bounds__(kSimilarityThreads)
    sp_slope_kernel(const SpSide<A> side, const SpSide<A> other, int n, A* out /* [B, B] */) {
  const int i = blockIdx.x;
  const A *x = side.gram.row(i), *y = other.gram.row(i);
  A* to = out + int64_t(i) * n;
  over_columns(n, [&](int j) {
    // The Gram matrix is symmetric, so the transposed entry follows from this one.
    const auto entry = [&](int row) {
      const A unit = x[j] / side.norm[row], apart = unit - y[j] / other.norm[row];
      return side.factor[row] * (apart - unit * side.along[row]);
    };
    to[j] = entry(i) + entry(j);
  });
}

}  // namespace sftn
