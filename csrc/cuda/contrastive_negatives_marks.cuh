// A block's marks of the ranks that a row takes or leaves out.
#pragma once

#include "contrastive_negatives.cuh"

namespace sftn {

// Marks ranks by coins, or none. Returns the number of marks of this thread. The words after those of the ranks, up to
// a multiple of 16 bytes, are zero.
__device__ __forceinline__ unsigned toss_coins(unsigned* words, unsigned candidates, const NegativesPlan& plan,
                                               uint64_t seed) {
  const unsigned num_words = (candidates + kWordBits - 1) / kWordBits;
  unsigned marked = 0;
  if (plan.coin_words == 0) {
    for (unsigned w = threadIdx.x * kAdjacentWords; w < num_words; w += blockDim.x * kAdjacentWords) {
      *reinterpret_cast<uint4*>(words + w) = uint4{0, 0, 0, 0};
    }
    return 0;
  }
  if (threadIdx.x < -num_words % kAdjacentWords) words[num_words + threadIdx.x] = 0;
  for (unsigned pair = threadIdx.x; 2 * pair < num_words; pair += blockDim.x) {
    const uint64_t coins = plan.coins(seed, pair);
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
  unsigned marked = sum_of_threads(toss_coins(words, candidates, plan, seed));
  const auto marks = static_cast<unsigned>(plan.marks);
  uint64_t draws = plan.first_draw();
  while (marked != marks) {
    const bool missing = marked < marks;
    const unsigned count = missing ? marks - marked : marked - marks;
    unsigned changed = 0;
    for (unsigned i = threadIdx.x; i < count; i += blockDim.x) {
      const unsigned rank = random_below(candidates, seed, draws + i);
      const unsigned mask = 1u << rank % kWordBits;
      unsigned* word = words + rank / kWordBits;
      const bool was_marked = ((missing ? atomicOr(word, mask) : atomicAnd(word, ~mask)) & mask) != 0;
      changed += was_marked != missing;
    }
    changed = sum_of_threads(changed);
    draws += count;
    marked += missing ? changed : -changed;
  }
}

// Turns a bitmap of marked ranks into that of the chosen ones: those marked, or those not. All threads of the block
// must call it.
__device__ __forceinline__ void choose_ranks(unsigned* words, unsigned candidates, bool leave_out) {
  if (!leave_out) return;
  for (unsigned w = threadIdx.x; w * kWordBits < candidates; w += blockDim.x) {
    words[w] = ~words[w] & low_bits(candidates - w * kWordBits);
  }
}

// How many of the ranks [begin, end) are chosen, in all lanes of the warp.
__device__ __forceinline__ unsigned count_chosen(const unsigned* chosen, unsigned begin, unsigned end) {
  unsigned count = 0;
  for (unsigned w = begin / kWordBits + lane_of_warp(); w * kWordBits < end; w += simt::kWarpSize) {
    const unsigned first = w * kWordBits;
    unsigned word = chosen[w] & low_bits(end - first);
    if (first < begin) word &= ~low_bits(begin - first);
    count += __popc(word);
  }
  return sum_of_lanes(count);
}

}  // namespace sftn
