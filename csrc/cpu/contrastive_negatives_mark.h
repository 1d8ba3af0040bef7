// The bitmap of a row of negatives: a mark for each rank that the row takes, or leaves out.
#pragma once

#include "../contrastive_negatives.h"
#include "level.h"
#include "vector.h"

namespace sftn {

constexpr int64_t kWordBits = 64;

// Words of a bitmap of ranks, with two spare ones at the end: combining two neighbouring words needs no bounds check.
inline int64_t num_words(int64_t candidates) { return divide_up(candidates, kWordBits) + 2; }

// Marks ranks by coins. Returns the number of marks.
SFTN_INLINE int64_t toss_coins_inline(const NegativesPlan& plan, int64_t candidates, uint64_t seed, uint64_t* words) {
#pragma omp simd
  for (int64_t w = 0; w < plan.coin_words; ++w) words[w] = plan.coins(seed, w);
  const int64_t behind = plan.coin_words * kWordBits - candidates;
  words[plan.coin_words - 1] &= ~uint64_t{0} >> behind;
  int64_t marked = 0;
  for (int64_t w = 0; w < plan.coin_words; ++w) marked += __builtin_popcountll(words[w]);
  return marked;
}

SFTN_INLINE void draw_ranks_inline(uint32_t candidates, uint64_t seed, uint64_t first, int64_t count, uint32_t* ranks) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) ranks[i] = random_below(candidates, seed, first + i);
}

SFTN_LEVELS(toss_coins, toss_coins_inline(args...))
SFTN_LEVELS(draw_ranks, draw_ranks_inline(args...))

// Sets or removes the marks of ranks. Returns how many changed.
template <bool kMark>
SFTN_INLINE int64_t set_marks(const uint32_t* ranks, int64_t count, uint64_t* words) {
  int64_t changed = 0;
  for (int64_t i = 0; i < count; ++i) {
    const uint64_t bit = uint64_t{1} << ranks[i] % kWordBits;
    uint64_t& word = words[ranks[i] / kWordBits];
    changed += ((word & bit) != 0) != kMark;
    word = kMark ? word | bit : word & ~bit;
  }
  return changed;
}

inline void mark_ranks(const NegativesPlan& plan, uint32_t candidates, uint64_t seed, uint64_t* words) {
  constexpr int64_t kRound = 512;
  uint32_t ranks[kRound];
  std::fill(words + plan.coin_words, words + num_words(candidates), uint64_t{0});
  int64_t marked = plan.coin_words > 0 ? toss_coins(plan, candidates, seed, words) : 0;
  for (uint64_t draws = plan.first_draw(); marked != plan.marks;) {
    const int64_t missing = plan.marks - marked, count = std::min(std::abs(missing), kRound);
    draw_ranks(candidates, seed, draws, count, ranks);
    marked += missing > 0 ? set_marks<true>(ranks, count, words) : -set_marks<false>(ranks, count, words);
    draws += count;
  }
}

}  // namespace sftn
