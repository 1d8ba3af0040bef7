// A sum over all blocks of a launch, in a fixed order, without a second launch. Each block writes its partial sums to
// global memory, and the last block to arrive adds them up.
#pragma once

#include "simt.cuh"
#include "team.cuh"

namespace sftn {

// Whether this block is the last of `blocks` to arrive. It then sees what the others wrote before they arrived, with
// loads past the L1 cache. All threads must call it.
//   arrivals  zero before the first arrival, and zero again after the last
__device__ __forceinline__ bool arrives_last(unsigned* arrivals, unsigned blocks) {
  SIMT_SHARED(bool, is_last, 1);
  __syncthreads();  // after the writes of all threads
  if (threadIdx.x == 0) {
    __threadfence();  // the writes must be visible before the arrival
    is_last[0] = atomicInc(arrivals, blocks - 1) == blocks - 1;
    __threadfence();
  }
  __syncthreads();
  return is_last[0];
}

// The sums of [count, N] partial sums, in every thread of the block.
template <int N, class A>
__device__ __forceinline__ void sum_partials(const A* partials, int64_t count, A (&sums)[N]) {
#pragma unroll
  for (int i = 0; i < N; ++i) sums[i] = 0;
  for (int64_t k = threadIdx.x; k < count; k += blockDim.x) {
#pragma unroll
    for (int i = 0; i < N; ++i) sums[i] += __ldcg(partials + k * N + i);
  }
  block_reduce<Add>(sums);
}

// All threads of every block must call it once. Returns true in one thread of the grid, with the totals in its values.
//   partials  [gridDim.x, N], uninitialised
//   arrivals  as in arrives_last
template <int N, class A>
__device__ __forceinline__ bool grid_sum(A (&values)[N], A* partials, unsigned* arrivals) {
  block_reduce<Add>(values);
  if (threadIdx.x == 0) {
#pragma unroll
    for (int i = 0; i < N; ++i) partials[int64_t(blockIdx.x) * N + i] = values[i];
  }
  if (!arrives_last(arrivals, gridDim.x)) return false;
  sum_partials(partials, gridDim.x, values);
  return threadIdx.x == 0;
}

}  // namespace sftn
