// The bitmaps of a row of negatives, sums over threads, and a block's search for own positions.
//
// A row's own positions are a bitmap, and so are its marked ranks. Bits of the first that are not positions of the data
// set are set too, so that its zeros are the candidates. A chunk is 1024 positions, a word of the bitmap for each lane.
#pragma once

#include "../contrastive_negatives.h"
#include "team.cuh"

namespace sftn {

constexpr unsigned kWordBits = 32, kChunkWords = simt::kWarpSize, kChunkBits = kChunkWords * kWordBits;
constexpr unsigned kAdjacentWords = sizeof(uint4) / sizeof(unsigned);  // of one access

struct NegativesParams {
  const int64_t* key;     // [1]
  const int64_t* index;   // [B]
  const int64_t* labels;  // [N]
  int64_t b, k;
  unsigned n, chunks;
};

__device__ __forceinline__ unsigned lane_of_warp() { return threadIdx.x % simt::kWarpSize; }
__device__ __forceinline__ unsigned warp_of_block() { return threadIdx.x / simt::kWarpSize; }
// The number of the lowest bit that is set, and of the highest one, which is a single instruction.
__device__ __forceinline__ unsigned lowest_bit(unsigned word) { return __popc((word & -word) - 1); }
__device__ __forceinline__ unsigned highest_bit(unsigned word) { return kWordBits - 1 - __clz(word); }
// 32 bits of two words, from bit `begin` of the lower one on. `begin` is at most 32.
__device__ __forceinline__ unsigned bits_from(unsigned begin, unsigned low, unsigned high) {
  return static_cast<unsigned>((uint64_t(high) << kWordBits | low) >> begin);
}
// The lowest `count` bits, of at most 32.
__device__ __forceinline__ unsigned low_bits(unsigned count) {
  return static_cast<unsigned>(uint64_t(1) << min(count, kWordBits)) - 1;
}

// The label of a row's sample.
__device__ __forceinline__ int64_t own_label(const NegativesParams& p, int64_t row) {
  const int64_t of_row = p.index[row], n = p.n;
  SFTN_DEVICE_ASSERT(of_row >= 0 && of_row < n);
  return p.labels[of_row];
}

__device__ __forceinline__ unsigned sum_of_lanes(unsigned value) {
  unsigned values[1] = {value};
  warp_reduce<Add>(values);
  return values[0];
}

// The sum of the values of the lanes before this one, and of all.
__device__ __forceinline__ unsigned sum_of_lanes_before(unsigned value, unsigned& total) {
  unsigned up_to_here = value;
#pragma unroll
  for (unsigned step = 1; step < simt::kWarpSize; step *= 2) {
    const unsigned below = __shfl_up_sync(~0u, up_to_here, step);
    if (lane_of_warp() >= step) up_to_here += below;
  }
  total = __shfl_sync(~0u, up_to_here, simt::kWarpSize - 1);
  return up_to_here - value;
}

// The sum of a value over the warps before this one, and over all. The value is the same in all lanes.
__device__ __forceinline__ unsigned sum_of_warps_before(unsigned value, unsigned& total) {
  SIMT_SHARED(unsigned, of_warp, 32);
  const unsigned warp = warp_of_block(), warps = blockDim.x / simt::kWarpSize;
  __syncthreads();  // the last call's values may still be read
  if (lane_of_warp() == 0) of_warp[warp] = value;
  __syncthreads();
  const unsigned before = sum_of_lanes_before(lane_of_warp() < warps ? of_warp[lane_of_warp()] : 0, total);
  return __shfl_sync(~0u, before, warp);
}

// The sum of all threads' values. All threads of the block must call it.
__device__ __forceinline__ unsigned sum_of_threads(unsigned value) {
  unsigned total = 0;
  sum_of_warps_before(sum_of_lanes(value), total);
  return total;
}

// Sets to[i] to the sum of value_of(0) .. value_of(i - 1), for all items, and returns the sum of all. value_of may read
// to[i]. All threads of the block must call it.
template <class F>
__device__ __forceinline__ unsigned sums_before(unsigned items, unsigned* to, F&& value_of) {
  const unsigned length = (items + blockDim.x - 1) / blockDim.x * simt::kWarpSize;  // of a warp's piece
  const unsigned begin = min(items, warp_of_block() * length), end = min(items, begin + length);
  unsigned of_piece = 0, total = 0;
  for (unsigned first = begin; first < end; first += simt::kWarpSize) {
    const unsigned item = first + lane_of_warp();
    const unsigned before = of_piece + sum_of_lanes_before(item < end ? value_of(item) : 0u, total);
    if (item < end) to[item] = before;
    of_piece += total;
  }
  const unsigned before_piece = sum_of_warps_before(of_piece, total);
  for (unsigned item = begin + lane_of_warp(); item < end; item += simt::kWarpSize) to[item] += before_piece;
  return total;
}

// Sets the bitmap of the positions with a label.
__device__ __forceinline__ void find_own(const NegativesParams& p, int64_t label, unsigned* own) {
  constexpr unsigned kGroups = 8;  // a warp would wait for the labels of 32 positions at a time
  const unsigned words = p.chunks * kChunkWords;
  for (unsigned first = warp_of_block() * kGroups; first < words; first += blockDim.x / simt::kWarpSize * kGroups) {
    bool is_own[kGroups];
#pragma unroll
    for (unsigned g = 0; g < kGroups; ++g) {
      const unsigned position = (first + g) * kWordBits + lane_of_warp();
      is_own[g] = position >= p.n || __ldg(p.labels + position) == label;
    }
    unsigned mine = 0;
#pragma unroll
    for (unsigned g = 0; g < kGroups; ++g) {
      const unsigned word = __ballot_sync(~0u, is_own[g]);
      if (lane_of_warp() == g) mine = word;
    }
    if (lane_of_warp() < kGroups) own[first + lane_of_warp()] = mine;
  }
}

// A warp's piece of the chunks, and the ranks of its candidates, which are contiguous too.
struct WarpPiece {
  const unsigned* own;
  unsigned begin, end;             // chunks
  unsigned first_rank, last_rank;  // last_rank is one past the last
  unsigned candidates;             // of the whole row

  // All threads of the block must call it.
  __device__ WarpPiece(const unsigned* own, unsigned chunks) : own(own) {
    const unsigned warps = blockDim.x / simt::kWarpSize, length = (chunks + warps - 1) / warps;
    begin = min(chunks, warp_of_block() * length);
    end = min(chunks, begin + length);
    unsigned count = 0;
    for (unsigned chunk = begin; chunk < end; ++chunk) count += __popc(~own[chunk * kChunkWords + lane_of_warp()]);
    count = sum_of_lanes(count);
    first_rank = sum_of_warps_before(count, candidates);
    last_rank = first_rank + count;
  }

  // Calls write(position, copies_of(rank)) for candidates and write(position, 0) for other positions, in all lanes at
  // once, 32 positions at a time.
  template <class CopiesOf, class Write>
  __device__ __forceinline__ void walk(CopiesOf&& copies_of, Write&& write) const {
    unsigned rank = first_rank;
    for (unsigned w = begin * kChunkWords; w < end * kChunkWords; ++w) {
      const unsigned of_word = ~own[w];
      const bool is_candidate = (of_word >> lane_of_warp() & 1u) != 0;
      const unsigned copies = is_candidate ? copies_of(rank + __popc(of_word & low_bits(lane_of_warp()))) : 0u;
      rank += __popc(of_word);
      write(w * kWordBits + lane_of_warp(), copies);
    }
  }
};

}  // namespace sftn
