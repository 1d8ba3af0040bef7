// What a block does for one row of negatives. The data set's positions are dealt to its warps in one piece each; a warp
// knows how many candidates, and how many negatives, stand before its piece, and so where to write.
#pragma once

#include "../contrastive_negatives.h"
#include "team.cuh"

namespace sftn {

constexpr unsigned kWordBits = 32;
// Of shared memory, 32 KiB: a bitmap of 262,144 ranks, or 8,192 counts.
constexpr unsigned kSharedWords = 8192;

struct NegativesParams {
  const int64_t* key;     // [1]
  const int64_t* index;   // [B]
  const int64_t* labels;  // [N]
  int64_t b, k;
  unsigned n;
  unsigned* bitmaps;  // [gridDim.x, bitmap_words], null if a bitmap fits shared memory
  int64_t bitmap_words;
};

// The sum of a value over the warps before this one, and over all. The value is the same in all lanes.
__device__ __forceinline__ unsigned sum_of_warps_before(unsigned value, unsigned& total) {
  SIMT_SHARED(unsigned, of_warp, 32);
  const unsigned warp = threadIdx.x / simt::kWarpSize, warps = blockDim.x / simt::kWarpSize;
  __syncthreads();  // the last call's values may still be read
  if (threadIdx.x % simt::kWarpSize == 0) of_warp[warp] = value;
  __syncthreads();
  unsigned before = 0;
  total = 0;
  for (unsigned w = 0; w < warps; ++w) {
    if (w < warp) before += of_warp[w];
    total += of_warp[w];
  }
  return before;
}

__device__ __forceinline__ unsigned sum_of_lanes(unsigned value) {
  unsigned values[1] = {value};
  warp_reduce<Add>(values);
  return values[0];
}

// A warp's piece of the positions, and the ranks of its candidates, which are in one piece too.
struct WarpPiece {
  const int64_t* labels;
  int64_t own_label;
  unsigned begin, end;             // positions
  unsigned first_rank, last_rank;  // last_rank is behind the last one
  unsigned candidates;             // of the whole row

  // To be called by all threads of the block.
  __device__ WarpPiece(const int64_t* labels, int64_t own_label, unsigned n) : labels(labels), own_label(own_label) {
    const unsigned lane = threadIdx.x % simt::kWarpSize;
    const unsigned length = (n + blockDim.x - 1) / blockDim.x * simt::kWarpSize;
    begin = min(n, threadIdx.x / simt::kWarpSize * length);
    end = min(n, begin + length);
    unsigned own = 0, all_own = 0;
#pragma unroll 4
    for (unsigned position = begin + lane; position < end; position += simt::kWarpSize) {
      own += __ldg(labels + position) == own_label;
    }
    own = sum_of_lanes(own);
    first_rank = begin - sum_of_warps_before(own, all_own);
    last_rank = first_rank + (end - begin - own);
    candidates = n - all_own;
  }

  // f(position, is_candidate, rank) in all lanes at once, for 32 positions after 32.
  template <class F>
  __device__ __forceinline__ void walk(F&& f) const {
    const unsigned lane = threadIdx.x % simt::kWarpSize, lanes_before = (1u << lane) - 1;
    unsigned rank = first_rank;
#pragma unroll 4
    for (unsigned first = begin; first < end; first += simt::kWarpSize) {
      const unsigned position = first + lane;
      const bool is_candidate = position < end && __ldg(labels + position) != own_label;
      const unsigned candidates_here = __ballot_sync(~0u, is_candidate);
      f(position, is_candidate, rank + __popc(candidates_here & lanes_before));
      rank += __popc(candidates_here);
    }
  }
};

// Sets the bits of the first `distinct` distinct ranks that are drawn.
__device__ __forceinline__ void draw_distinct(unsigned* words, unsigned candidates, int64_t distinct, uint64_t seed) {
  for (unsigned w = threadIdx.x; w < (candidates + kWordBits - 1) / kWordBits; w += blockDim.x) words[w] = 0;
  __syncthreads();
  uint64_t draws = 0;
  for (int64_t missing = distinct; missing > 0;) {
    int64_t repeated[1] = {0};
    for (int64_t i = threadIdx.x; i < missing; i += blockDim.x) {
      const unsigned rank = random_below(candidates, seed, draws + i);
      const unsigned mask = 1u << rank % kWordBits;
      repeated[0] += (atomicOr(words + rank / kWordBits, mask) & mask) != 0;
    }
    block_reduce<Add>(repeated);
    draws += missing;
    missing = repeated[0];
  }
  __syncthreads();
}

// How many bits of ranks [begin, end) are set, after `flip`, in all lanes of the warp.
__device__ __forceinline__ unsigned count_bits(const unsigned* words, unsigned flip, unsigned begin, unsigned end) {
  unsigned count = 0;
  for (unsigned w = begin / kWordBits + threadIdx.x % simt::kWarpSize; w * kWordBits < end; w += simt::kWarpSize) {
    const unsigned first = w * kWordBits;
    unsigned word = words[w] ^ flip;
    if (first < begin) word &= ~0u << (begin - first);
    if (end - first < kWordBits) word &= (1u << (end - first)) - 1;
    count += __popc(word);
  }
  return sum_of_lanes(count);
}

template <class Out>
__device__ __forceinline__ void write_distinct(const WarpPiece& piece, const unsigned* words, bool leave_out,
                                               Out* out) {
  const unsigned flip = leave_out ? ~0u : 0u, lanes_before = (1u << threadIdx.x % simt::kWarpSize) - 1;
  unsigned all = 0;
  out += sum_of_warps_before(count_bits(words, flip, piece.first_rank, piece.last_rank), all);
  piece.walk([&](unsigned position, bool is_candidate, unsigned rank) {
    const bool chosen = is_candidate && ((words[rank / kWordBits] ^ flip) >> rank % kWordBits & 1u);
    const unsigned chosen_here = __ballot_sync(~0u, chosen);
    if (chosen) out[__popc(chosen_here & lanes_before)] = static_cast<Out>(position);
    out += __popc(chosen_here);
  });
}

// K draws in order, by counting how often each rank comes. A row longer than its candidates are many is no common case:
// it repeats its draws for every kSharedWords ranks, and so needs no memory.
template <class Out>
__device__ __forceinline__ void draw_repeated(const WarpPiece& piece, unsigned* counts, int64_t k, uint64_t seed,
                                              Out* out) {
  const int lane = threadIdx.x % simt::kWarpSize;
  for (unsigned first = 0; first < piece.candidates; first += kSharedWords) {
    __syncthreads();  // the last counts may still be read
    for (unsigned i = threadIdx.x; i < kSharedWords; i += blockDim.x) counts[i] = 0;
    __syncthreads();
    for (int64_t i = threadIdx.x; i < k; i += blockDim.x) {
      const unsigned rank = random_below(piece.candidates, seed, i);
      if (rank >= first && rank - first < kSharedWords) atomicAdd(counts + rank - first, 1u);
    }
    __syncthreads();
    const auto count_of = [&](unsigned rank) {
      return rank >= first && rank - first < kSharedWords ? counts[rank - first] : 0u;
    };
    unsigned count = 0, all = 0;
    for (unsigned rank = piece.first_rank + lane; rank < piece.last_rank; rank += simt::kWarpSize) {
      count += count_of(rank);
    }
    Out* to = out + sum_of_warps_before(sum_of_lanes(count), all);
    out += all;
    piece.walk([&](unsigned position, bool is_candidate, unsigned rank) {
      const unsigned copies = is_candidate ? count_of(rank) : 0;
      unsigned up_to_here = copies;
#pragma unroll
      for (int step = 1; step < simt::kWarpSize; step *= 2) {
        const unsigned below = __shfl_up_sync(~0u, up_to_here, step);
        if (lane >= step) up_to_here += below;
      }
      for (unsigned i = up_to_here - copies; i < up_to_here; ++i) to[i] = static_cast<Out>(position);
      to += __shfl_sync(~0u, up_to_here, simt::kWarpSize - 1);
    });
  }
}

}  // namespace sftn
