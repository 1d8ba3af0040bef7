// Loss and gradient of contrastive distillation from each anchor's own rows; ../contrastive.h has the formulas.
//
// A block takes one anchor of one side and a slice of its negatives. Neighbouring blocks take the same slice of other
// anchors: if negatives ascend, they read the same part of the bank, from the second-level cache. The gradient is
// summed in registers. Each block writes its share.
#pragma once

#include "contrastive_shares.cuh"

namespace sftn {

// Blocks whose registers a multiprocessor should hold.
template <class A, int kPacks>
constexpr int kScoreBlocks = sizeof(A) == 8 || kPacks == 8 ? 1
                             : kPacks == 4                 ? 2
                                                           : 3;

template <class A, class T, int kPacks, bool kWhole>
__global__ void __launch_bounds__(kScoreThreads, (kScoreBlocks<A, kPacks>))
    contrastive_score_kernel(const __grid_constant__ ContrastiveParams<A, T> p,
                             const __grid_constant__ ContrastiveShares<A> shares, int64_t slice_length) {
  constexpr int kSize = LaneColumns<kPacks>::kSize, kLanesOfRow = simt::kWarpSize / kRows<kPacks>;
  SIMT_SHARED(A, shift, 2);
  SIMT_SHARED(A, block_grad, kPacks * kPack * simt::kWarpSize);
  const int anchor = static_cast<int>(blockIdx.x % p.b), slice = static_cast<int>(blockIdx.x / p.b % shares.slices);
  const int side = static_cast<int>(blockIdx.x / p.b / shares.slices);
  const int lane = threadIdx.x % simt::kWarpSize, warp = threadIdx.x / simt::kWarpSize;
  const bool wanted = shares.wanted[side];

  if (threadIdx.x == 0) p.split_shift(side, shift);
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
  const int64_t first = slice * slice_length, end = min(first + slice_length, p.k);
  for_negatives<kPacks, kWhole>(p, bank, anchor, v, first, end, [&](const auto& values, int count, A dot) {
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

  block_reduce<Add>(loss);
  if (threadIdx.x == 0) shares.losses[blockIdx.x] = loss[0];
  if (wanted) {
    const int64_t share = (int64_t(side) * p.b + anchor) * shares.slices + slice;
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

}  // namespace sftn
