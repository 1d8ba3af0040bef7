// The threads that share a row: a warp (short rows, several in a block) or a block (long rows). Both reduce several
// values at once, which share the latency of a shuffle or a barrier.
#pragma once

#include "simt.cuh"

namespace sftn {

struct Max {
  // Ignores NaN if the other is a number; a NaN logit shows in the sums.
  __device__ static float apply(float a, float b) { return fmaxf(a, b); }
  __device__ static double apply(double a, double b) { return fmax(a, b); }
};

struct Min {
  __device__ static int apply(int a, int b) { return a < b ? a : b; }
};

struct Add {
  template <class A>
  __device__ static A apply(A a, A b) {
    return a + b;
  }
};

// Every lane gets every result.
template <class Op, int N, class A>
__device__ __forceinline__ void warp_reduce(A (&values)[N]) {
#pragma unroll
  for (int lane_mask = simt::kWarpSize / 2; lane_mask > 0; lane_mask /= 2) {
#pragma unroll
    for (int i = 0; i < N; ++i) values[i] = Op::apply(values[i], __shfl_xor_sync(~0u, values[i], lane_mask));
  }
}

// Every thread of the block gets every result. The order is fixed: lanes pairwise, then warp after warp. All threads
// must call it; blockDim.x is a multiple of the warp size and at most 32 warps.
template <class Op, int N, class A>
__device__ __forceinline__ void block_reduce(A (&values)[N]) {
  SIMT_SHARED(A, of_warp, 32 * N);
  const int lane = threadIdx.x % simt::kWarpSize, warp = threadIdx.x / simt::kWarpSize;
  const int warps = blockDim.x / simt::kWarpSize;
  warp_reduce<Op>(values);
  __syncthreads();  // the last call's values may still be read
  if (lane == 0) {
#pragma unroll
    for (int i = 0; i < N; ++i) of_warp[warp * N + i] = values[i];
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < N; ++i) values[i] = of_warp[i];
  for (int w = 1; w < warps; ++w) {
#pragma unroll
    for (int i = 0; i < N; ++i) values[i] = Op::apply(values[i], of_warp[w * N + i]);
  }
}

struct WarpTeam {
  static constexpr int kMaxThreads = 256;  // of the block

  __device__ static int rank() { return threadIdx.x % simt::kWarpSize; }
  __device__ static int size() { return simt::kWarpSize; }
  __device__ static int64_t first_row() {
    return int64_t(blockIdx.x) * (blockDim.x / simt::kWarpSize) + threadIdx.x / simt::kWarpSize;
  }
  __device__ static int64_t row_step() { return int64_t(gridDim.x) * (blockDim.x / simt::kWarpSize); }

  template <class Op, int N, class A>
  __device__ static void reduce(A (&values)[N]) {
    warp_reduce<Op>(values);
  }
};

struct BlockTeam {
  static constexpr int kMaxThreads = 256;

  __device__ static int rank() { return threadIdx.x; }
  __device__ static int size() { return blockDim.x; }
  __device__ static int64_t first_row() { return blockIdx.x; }
  __device__ static int64_t row_step() { return gridDim.x; }

  template <class Op, int N, class A>
  __device__ static void reduce(A (&values)[N]) {
    block_reduce<Op>(values);
  }
};

// One or the other, chosen at run time: half the kernels to compile.
struct RowTeam {
  bool is_warp;
  int rank, size;
  int64_t first_row, row_step;

  __device__ explicit RowTeam(bool warp)
      : is_warp(warp),
        rank(warp ? WarpTeam::rank() : BlockTeam::rank()),
        size(warp ? WarpTeam::size() : BlockTeam::size()),
        first_row(warp ? WarpTeam::first_row() : BlockTeam::first_row()),
        row_step(warp ? WarpTeam::row_step() : BlockTeam::row_step()) {}

  template <class Op, int N, class A>
  __device__ __forceinline__ void reduce(A (&values)[N]) const {
    is_warp ? warp_reduce<Op>(values) : block_reduce<Op>(values);
  }
};

}  // namespace sftn
