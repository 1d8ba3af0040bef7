// Shares of loss and gradients that blocks write, and the launch that adds them up in order.
#pragma once

#include "contrastive_params.cuh"

namespace sftn {

constexpr int kScoreThreads = 256;

template <class A>
struct ContrastiveShares {
  A* losses;       // one for each block
  A* grads;        // [2, B, slices, D]
  int64_t blocks;  // of the launch that writes the shares
  int slices;      // of an anchor's rows
  bool wanted[2];  // the requested gradients
};

// 1 / x for x from 1 to 3, without the branch of a division that a subnormal x would need.
__device__ __forceinline__ float reciprocal_of(float x) { return __fdividef(1.0f, x); }
__device__ __forceinline__ double reciprocal_of(double x) { return 1 / x; }

// log(1 + e) for e from 0 to 1, without branches: 2 artanh(e / (2 + e)) by its series, as exact as log1pf.
__device__ __forceinline__ float log1p_of_fraction(float e) {
  const float s = e * reciprocal_of(2.0f + e), square = s * s;
  float p = 1.0f / 13;
#pragma unroll
  for (int n = 11; n >= 3; n -= 2) p = 1.0f / n + p * square;
  return 2 * (s + s * square * p);
}
__device__ __forceinline__ double log1p_of_fraction(double e) { return log1p_of(e); }

// softplus(a) and sigmoid(a)
template <class A>
struct Logistic {
  A loss, weight;
  __device__ __forceinline__ explicit Logistic(A a) {
    const A e = exp_of(a > A(0) ? -a : a), inverse = reciprocal_of(A(1) + e);
    loss = (a > A(0) ? a : A(0)) + log1p_of_fraction(e);
    weight = a > A(0) ? inverse : e * inverse;
  }
};

template <class A>
struct ContrastiveResults {
  A* loss;      // []
  A* grads[2];  // [B, D], null where not requested
  A grad_scale, loss_scale, constant;
};

// Adds up the shares. Block i < 2 B sums the gradient of anchor i % B of side i / B, the last block the loss.
//
// Several threads share a column where the block has more threads than there are columns: each has every `parts`-th
// slice, so that many loads are in flight.
template <class A>
__global__ void __launch_bounds__(kScoreThreads, 4)
    contrastive_join_kernel(const __grid_constant__ ContrastiveShares<A> shares,
                            const __grid_constant__ ContrastiveResults<A> out, int b, int d) {
  SIMT_SHARED(A, of_part, kScoreThreads);
  if (static_cast<int>(blockIdx.x) == 2 * b) {
    A loss[1] = {A(0)};
    for (int64_t i = threadIdx.x; i < shares.blocks; i += blockDim.x) loss[0] += shares.losses[i];
    block_reduce<Add>(loss);
    if (threadIdx.x == 0) *out.loss = loss[0] * out.loss_scale + out.constant;
  } else if (A* grads = out.grads[blockIdx.x / b]) {
    const A* from = shares.grads + int64_t(blockIdx.x) * shares.slices * d;
    const int threads = static_cast<int>(blockDim.x), thread = static_cast<int>(threadIdx.x);
    const int width = min(d, threads), parts = threads / width, part = thread / width;
    for (int first = 0; first < d; first += width) {
      const int column = first + thread % width;
      const bool reads = part < parts && column < d;
      A sum = A(0);
      if (reads) {
#pragma unroll 8
        for (int slice = part; slice < shares.slices; slice += parts) sum += from[int64_t(slice) * d + column];
      }
      of_part[thread] = sum;
      __syncthreads();
      if (reads && part == 0) {
        for (int other = 1; other < parts; ++other) sum += of_part[other * width + thread];
        grads[int64_t(blockIdx.x % b) * d + column] = sum * out.grad_scale;
      }
      __syncthreads();
    }
  }
}

// Calls launch(shares) for a launch of `blocks` blocks that write their shares, and launches the sum.
template <class A, class F>
void add_up(const ContrastiveInput& in, const ContrastiveOutput& out, int64_t blocks, int64_t slices,
            cudaStream_t stream, F&& launch) {
  const Tensor& like = in.sides[0].embedding;
  const bool wanted[2] = {out.grads[0].size(0) > 0, out.grads[1].size(0) > 0};
  const Tensor losses = empty(std::array<int64_t, 1>{blocks}, in.dtype, like);
  const Tensor grads =
      empty(std::array<int64_t, 4>{wanted[0] || wanted[1] ? 2 : 0, in.b, slices, in.d}, in.dtype, like);
  const ContrastiveShares<A> shares{
      data_of<A>(losses), data_of<A>(grads), blocks, static_cast<int>(slices), {wanted[0], wanted[1]}};
  launch(shares);
  const ContrastiveResults<A> results{
      data_of<A>(out.loss),
      {wanted[0] ? data_of<A>(out.grads[0]) : nullptr, wanted[1] ? data_of<A>(out.grads[1]) : nullptr},
      static_cast<A>(1 / (static_cast<double>(in.b) * in.temperature)),
      static_cast<A>(1 / static_cast<double>(in.b)),
      static_cast<A>(2 * in.constant())};
  simt::launch(contrastive_join_kernel<A>, static_cast<unsigned>(2 * in.b + 1), kScoreThreads, stream, shares, results,
               static_cast<int>(in.b), static_cast<int>(in.d));
}

}  // namespace sftn
