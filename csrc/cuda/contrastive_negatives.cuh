// A block's work on one row of negatives. Each warp gets one piece of the data set's positions. It knows the numbers of
// candidates and negatives before its piece, and so where to write.
#pragma once

#include "../contrastive_negatives.h"
#include "team.cuh"

namespace sftn {

constexpr unsigned kWordBits = 32;
// Words of shared memory, 32 KiB: a bitmap of 262,144 ranks, or 8,192 counts.
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

// A warp's piece of the positions, and the ranks of its candidates, which are contiguous too.
struct WarpPiece {
  // 32 positions at a time would leave the warp waiting for the labels of the next 32.
  static constexpr int kGroups = 8;

  const int64_t* labels;
  int64_t own_label;
  unsigned begin, end;             // positions
  unsigned first_rank, last_rank;  // last_rank is one past the last
  unsigned candidates;             // of the whole row

  // All threads of the block must call it.
  __device__ WarpPiece(const int64_t* labels, int64_t own_label, unsigned n) : labels(labels), own_label(own_label) {
    const unsigned length = (n + blockDim.x - 1) / blockDim.x * simt::kWarpSize;
    begin = min(n, threadIdx.x / simt::kWarpSize * length);
    end = min(n, begin + length);
    unsigned count = 0;
    for (unsigned first = begin; first < end; first += kGroups * simt::kWarpSize) {
      bool is_candidate[kGroups];
      read_groups(first, is_candidate);
#pragma unroll
      for (int g = 0; g < kGroups; ++g) count += is_candidate[g];
    }
    count = sum_of_lanes(count);
    first_rank = sum_of_warps_before(count, candidates);
    last_rank = first_rank + count;
  }

  // Calls write(position, copies_of(rank)) for candidates and write(position, 0) for other positions, the latter in all
  // lanes at once, 32 positions at a time.
  template <class CopiesOf, class Write>
  __device__ __forceinline__ void walk(CopiesOf&& copies_of, Write&& write) const {
    const unsigned lane = threadIdx.x % simt::kWarpSize, lanes_before = (1u << lane) - 1;
    unsigned rank = first_rank;
    for (unsigned first = begin; first < end; first += kGroups * simt::kWarpSize) {
      bool is_candidate[kGroups];
      unsigned copies[kGroups];
      read_groups(first, is_candidate);
#pragma unroll
      for (int g = 0; g < kGroups; ++g) {
        const unsigned of_group = __ballot_sync(~0u, is_candidate[g]);
        copies[g] = is_candidate[g] ? copies_of(rank + __popc(of_group & lanes_before)) : 0u;
        rank += __popc(of_group);
      }
#pragma unroll
      for (int g = 0; g < kGroups; ++g) write(first + g * simt::kWarpSize + lane, copies[g]);
    }
  }

 private:
  __device__ __forceinline__ void read_groups(unsigned first, bool (&is_candidate)[kGroups]) const {
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
      const unsigned position = first + g * simt::kWarpSize + threadIdx.x % simt::kWarpSize;
      is_candidate[g] = position < end && __ldg(labels + position) != own_label;
    }
  }
};

// Marks ranks by coins, or none. Returns the number of marks of this thread.
__device__ __forceinline__ int64_t toss_coins(unsigned* words, unsigned candidates, const NegativesPlan& plan,
                                              uint64_t seed) {
  const unsigned num_words = (candidates + kWordBits - 1) / kWordBits;
  int64_t marked = 0;
  for (unsigned pair = threadIdx.x; 2 * pair < num_words; pair += blockDim.x) {
    const uint64_t coins = plan.coin_words > 0 ? plan.coins(seed, pair) : 0;
#pragma unroll
    for (unsigned half = 0; half < 2; ++half) {
      const unsigned w = 2 * pair + half, first = w * kWordBits;
      if (w >= num_words) break;
      const unsigned valid = candidates - first < kWordBits ? (1u << (candidates - first)) - 1 : ~0u;
      const unsigned word = static_cast<unsigned>(coins >> (half * kWordBits)) & valid;
      words[w] = word;
      marked += __popc(word);
    }
  }
  return marked;
}

// Sets the bits of the ranks that the row takes, or leaves out.
__device__ __forceinline__ void mark_ranks(unsigned* words, unsigned candidates, const NegativesPlan& plan,
                                           uint64_t seed) {
  int64_t marked[1] = {toss_coins(words, candidates, plan, seed)};
  block_reduce<Add>(marked);
  uint64_t draws = plan.first_draw();
  while (marked[0] != plan.marks) {
    const bool missing = marked[0] < plan.marks;
    const int64_t count = missing ? plan.marks - marked[0] : marked[0] - plan.marks;
    int64_t changed[1] = {0};
    for (int64_t i = threadIdx.x; i < count; i += blockDim.x) {
      const unsigned rank = random_below(candidates, seed, draws + i);
      const unsigned mask = 1u << rank % kWordBits;
      unsigned* word = words + rank / kWordBits;
      const bool was_marked = ((missing ? atomicOr(word, mask) : atomicAnd(word, ~mask)) & mask) != 0;
      changed[0] += was_marked != missing;
    }
    block_reduce<Add>(changed);
    draws += count;
    marked[0] += missing ? changed[0] : -changed[0];
  }
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
  piece.walk([&](unsigned rank) { return (words[rank / kWordBits] ^ flip) >> rank % kWordBits & 1u; },
             [&](unsigned position, unsigned chosen) {
               const unsigned chosen_here = __ballot_sync(~0u, chosen);
               if (chosen != 0) out[__popc(chosen_here & lanes_before)] = static_cast<Out>(position);
               out += __popc(chosen_here);
             });
}

// K draws in order, by counting each rank's occurrences. More draws than candidates is a rare case: it repeats the
// draws for every kSharedWords ranks, and so needs no global memory.
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
    piece.walk(count_of, [&](unsigned position, unsigned copies) {
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
