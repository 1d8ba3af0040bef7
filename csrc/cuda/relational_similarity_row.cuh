// Shared code of SP's and PKT's kernels: one block for each row of the Gram matrices, which fit the second-level cache.
#pragma once

#include "arrivals.cuh"
#include "grid_sum.cuh"
#include "math.cuh"
#include "simt.cuh"
#include "team.cuh"

namespace sftn {

constexpr int kSimilarityThreads = 128;  // at most, for each block

template <class A>
struct SimilarityGram {
  const A* data;   // [B, B]
  int64_t stride;  // between rows
  __device__ const A* row(int64_t i) const { return data + i * stride; }
};

// Calls f(j) for the columns of this thread: adjacent threads read adjacent columns.
template <class F>
__device__ __forceinline__ void over_columns(int n, F f) {
  for (int j = threadIdx.x; j < n; j += blockDim.x) f(j);
}

template <class A>
struct SimilarityMean {
  A* loss;      // []
  A* partials;  // [B]
  ArrivalCounter arrivals;
};

// Adds up the loss from every thread's share of its row. All threads of every block must call it once.
template <class A>
__device__ __forceinline__ void store_similarity_mean(A share, int n, const SimilarityMean<A>& out) {
  A sum[1] = {share};
  if (grid_sum(sum, out.partials, out.arrivals.get())) *out.loss = sum[0] / (A(n) * A(n));
}

}  // namespace sftn
