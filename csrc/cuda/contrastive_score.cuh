// Loss and gradient of contrastive distillation; ../contrastive.h has the formulas.
//
// A block takes one anchor of one side and a slice of its negatives. Neighbouring blocks take the same slice of other
// anchors: if negatives ascend, they read the same part of the bank, from the second-level cache. The gradient is
// summed in registers. Each block writes its share, and a second launch adds the shares up in order.
#pragma once

#include "contrastive_params.cuh"

namespace sftn {

constexpr int kScoreThreads = 256;

template <class A>
struct ContrastiveShares {
  A* losses;             // [2, B, slices]
  A* grads;              // [2, B, slices, D]
  int slices;            // of an anchor's negatives
  int64_t slice_length;  // a multiple of the block's threads
  bool wanted[2];        // the requested gradients
};

// softplus(a) and sigmoid(a)
template <class A>
struct Logistic {
  A loss, weight;
  __device__ explicit Logistic(A a) {
    const A e = exp_of(a > A(0) ? -a : a), inverse = A(1) / (A(1) + e);
    loss = (a > A(0) ? a : A(0)) + log1p_of(e);
    weight = a > A(0) ? inverse : e * inverse;
  }
};

template <class A, class T, int kPacks>
__global__ void __launch_bounds__(kScoreThreads, 1)
    contrastive_score_kernel(const __grid_constant__ ContrastiveParams<A, T> p,
                             const __grid_constant__ ContrastiveShares<A> shares) {
  constexpr int kSize = LaneColumns<kPacks>::kSize, kLanesOfRow = simt::kWarpSize / kRows<kPacks>;
  SIMT_SHARED(A, shift, 2);
  SIMT_SHARED(A, block_grad, kPacks * kPack * simt::kWarpSize);
  const int anchor = static_cast<int>(blockIdx.x % p.b), slice = static_cast<int>(blockIdx.x / p.b % shares.slices);
  const int side = static_cast<int>(blockIdx.x / p.b / shares.slices);
  const int lane = threadIdx.x % simt::kWarpSize, warp = threadIdx.x / simt::kWarpSize;
  const bool wanted = shares.wanted[side];

  if (threadIdx.x == 0) {
    // In two parts: rounded to one float it would add the same error to every term.
    const double exact = log(p.z(side) * p.noise);
    shift[0] = static_cast<A>(exact);
    shift[1] = static_cast<A>(exact - static_cast<double>(shift[0]));
  }
  __syncthreads();
  const A shift_high = shift[0], shift_low = shift[1];

  A v[kSize], grad[kSize], loss[1] = {A(0)};
  // float64 has no register left for packs of a wide embedding.
  LaneColumns<kPacks>{p.d, p.aligned && sizeof(A) == 4}.load(p.sides[side].embedding + int64_t(anchor) * p.d, v);
#pragma unroll
  for (int i = 0; i < kSize; ++i) grad[i] = A(0);
  const T* bank = p.sides[side].bank;

  if (slice == 0 && warp == 0) {
    A values[kSize];
    const A dot = load_positive<kPacks>(p, bank, anchor, v, values);
    const Logistic<A> positive(shift_low + shift_high - dot * p.inverse_temperature);
    if (lane == 0) loss[0] += positive.loss;
#pragma unroll
    for (int i = 0; i < kSize; ++i) grad[i] -= positive.weight * values[i];
  }
  const int64_t first = slice * shares.slice_length, end = min(first + shares.slice_length, p.k);
  for_negatives<kPacks>(p, bank, anchor, v, first, end, [&](const auto& values, int count, A dot) {
    const Logistic<A> negative((dot * p.inverse_temperature - shift_high) - shift_low);
    if (lane % kLanesOfRow == 0 && lane / kLanesOfRow < count) loss[0] += negative.loss;
    if (wanted) {
#pragma unroll
      for (int r = 0; r < kRows<kPacks>; ++r) {
        const A weight = __shfl_sync(~0u, negative.weight, r * kLanesOfRow);  // rows that are not there are zero
#pragma unroll
        for (int i = 0; i < kSize; ++i) grad[i] += weight * values[r][i];
      }
    }
  });

  const int64_t share = (int64_t(side) * p.b + anchor) * shares.slices + slice;
  block_reduce<Add>(loss);
  if (threadIdx.x == 0) shares.losses[share] = loss[0];
  if (wanted) {
    for (int turn = 0; turn < static_cast<int>(blockDim.x) / simt::kWarpSize; ++turn) {
      if (warp == turn) {
#pragma unroll
        for (int i = 0; i < kSize; ++i) {
          const int at = i * simt::kWarpSize + lane;  // without bank conflicts
          block_grad[at] = (turn == 0 ? A(0) : block_grad[at]) + grad[i];
        }
      }
      __syncthreads();
    }
    if (warp == 0) {
      LaneColumns<kPacks>{p.d, p.aligned}.store(shares.grads + share * p.d,
                                                [&](int i) { return block_grad[i * simt::kWarpSize + lane]; });
    }
  }
}

template <class A>
struct ContrastiveResults {
  A* loss;      // []
  A* grads[2];  // [B, D], null where not requested
  A grad_scale, loss_scale, constant;
};

// Adds up the shares. Block i < 2 B sums the gradient of anchor i % B of side i / B, the last block the loss.
template <class A>
__global__ void __launch_bounds__(kScoreThreads, 1)
    contrastive_join_kernel(const __grid_constant__ ContrastiveShares<A> shares,
                            const __grid_constant__ ContrastiveResults<A> out, int b, int d) {
  if (static_cast<int>(blockIdx.x) == 2 * b) {
    A loss[1] = {A(0)};
    for (int64_t i = threadIdx.x; i < int64_t(2) * b * shares.slices; i += blockDim.x) loss[0] += shares.losses[i];
    block_reduce<Add>(loss);
    if (threadIdx.x == 0) *out.loss = loss[0] * out.loss_scale + out.constant;
  } else if (A* grads = out.grads[blockIdx.x / b]) {
    const A* from = shares.grads + int64_t(blockIdx.x) * shares.slices * d;
    for (int column = threadIdx.x; column < d; column += blockDim.x) {
      A sum = A(0);
      for (int slice = 0; slice < shares.slices; ++slice) sum += from[int64_t(slice) * d + column];
      grads[int64_t(blockIdx.x % b) * d + column] = sum * out.grad_scale;
    }
  }
}

}  // namespace sftn
