// A sum over all blocks of a launch, in a fixed order, without a second launch. Each block writes its partial sums to
// global memory, and the last block to arrive adds them up.
#pragma once

#include "simt.cuh"
#include "team.cuh"

namespace sftn {

// All threads of every block must call it once. Returns true in one thread of the grid, with the totals in its values.
//   partials  [gridDim.x, N], uninitialised
//   arrivals  zero before the launch
template <int N, class A>
__device__ __forceinline__ bool grid_sum(A (&values)[N], A* partials, unsigned* arrivals) {
  SIMT_SHARED(bool, is_last, 1);
  block_reduce<Add>(values);
  if (threadIdx.x == 0) {
#pragma unroll
    for (int i = 0; i < N; ++i) partials[int64_t(blockIdx.x) * N + i] = values[i];
    __threadfence();  // the partial sums must be visible before the arrival
    is_last[0] = atomicAdd(arrivals, 1u) == gridDim.x - 1;
    __threadfence();
  }
  __syncthreads();
  if (is_last[0]) {
#pragma unroll
    for (int i = 0; i < N; ++i) values[i] = 0;
    for (unsigned block = threadIdx.x; block < gridDim.x; block += blockDim.x) {
#pragma unroll
      for (int i = 0; i < N; ++i) values[i] += __ldcg(partials + int64_t(block) * N + i);  // past the stale L1
    }
    block_reduce<Add>(values);
  }
  return is_last[0] && threadIdx.x == 0;
}

}  // namespace sftn
