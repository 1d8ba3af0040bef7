// A sum over all blocks of a launch, in a fixed order, without a second launch: each block leaves its partial sums in
// global memory, and the block that arrives last adds them all up.
#pragma once

#include "simt.cuh"
#include "team.cuh"

namespace sftn {

// To be called once by all threads of every block. True in one thread of the grid, whose values are then the totals.
//   partials  [gridDim.x, N], uninitialised
//   arrivals  zero before the launch
template <int N, class A>
__device__ __forceinline__ bool grid_sum(A (&values)[N], A* partials, unsigned* arrivals) {
  SIMT_SHARED(bool, is_last, 1);
  block_reduce<Add>(values);
  if (threadIdx.x == 0) {
#pragma unroll
    for (int i = 0; i < N; ++i) partials[int64_t(blockIdx.x) * N + i] = values[i];
    __threadfence();  // the partial sums must be seen before the arrival
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
