// CPU kernel of the contrastive losses' negatives. ../contrastive_negatives.h says how they are drawn.
#include "../contrastive_negatives.h"

#include <vector>

#include "class_positions.h"
#include "parallel.h"
#include "vector.h"

namespace sftn {

constexpr int64_t kWordBits = 64;

// Sets the bits of the first `distinct` distinct ranks that are drawn.
SFTN_CLONES static void draw_distinct(uint64_t* words, uint32_t candidates, int64_t distinct, uint64_t seed) {
  uint64_t draws = 0;
  for (int64_t missing = distinct; missing > 0;) {
    int64_t repeated = 0;
    for (int64_t i = 0; i < missing; ++i) {
      const uint32_t rank = random_below(candidates, seed, draws++);
      uint64_t& word = words[rank / kWordBits];
      const uint64_t mask = uint64_t{1} << rank % kWordBits;
      repeated += (word & mask) != 0;
      word |= mask;
    }
    missing = repeated;
  }
}

// Writes base + i for each bit i of the word. What comes behind, up to kSlack elements of it, may be overwritten.
constexpr int64_t kSlack = 4;
template <class Out>
SFTN_INLINE Out* write_bits(uint64_t word, int64_t base, Out* out) {
  Out* const behind = out + __builtin_popcountll(word);
  constexpr uint64_t kLastBit = uint64_t{1} << (kWordBits - 1);  // 0 has no first bit, and a branch would cost more
  // Four at once, needed or not: how many there are is anybody's guess, and a wrong guess costs more.
  do {
    for (int64_t i = 0; i < kSlack; ++i, word &= word - 1) {
      *out++ = static_cast<Out>(base + __builtin_ctzll(word | kLastBit));
    }
  } while (word != 0);
  return behind;
}

// The same for the row's end, where other memory comes behind.
template <class Out>
SFTN_INLINE Out* write_last_bits(uint64_t word, int64_t base, Out* out) {
  for (; word != 0; word &= word - 1) *out++ = static_cast<Out>(base + __builtin_ctzll(word));
  return out;
}

// Writes the positions of the ranks whose bits are set or, to leave them out, not set: out_end - out of them.
template <class Out>
SFTN_INLINE void write_positions(const uint64_t* words, bool leave_out, int64_t candidates, const int32_t* own,
                                 const int32_t* own_end, Out* out, const Out* out_end) {
  const uint64_t flip = leave_out ? ~uint64_t{0} : 0;
  int64_t own_before = 0;
  for (int64_t first = 0; first < candidates; first += kWordBits) {
    uint64_t left = words[first / kWordBits] ^ flip;
    if (candidates - first < kWordBits) left &= (uint64_t{1} << (candidates - first)) - 1;
    const bool roomy = out_end - out >= kWordBits + kSlack;
    const auto write = [&](uint64_t word) __attribute__((always_inline)) {
      out = roomy ? write_bits(word, first + own_before, out) : write_last_bits(word, first + own_before, out);
    };
    // An own position stands just before the rank that is its number without the own ones ahead of it.
    for (; own < own_end && *own - own_before < first + kWordBits; ++own, ++own_before) {
      const uint64_t ahead = left & ((uint64_t{1} << (*own - own_before - first)) - 1);
      if (ahead != 0) write(ahead);  // large classes leave many gaps
      left ^= ahead;
    }
    write(left);
  }
}

SFTN_CLONES static void write_row(const uint64_t* words, bool leave_out, int64_t candidates, const int32_t* own,
                                  const int32_t* own_end, int32_t* out, const int32_t* out_end) {
  write_positions(words, leave_out, candidates, own, own_end, out, out_end);
}
SFTN_CLONES static void write_row(const uint64_t* words, bool leave_out, int64_t candidates, const int32_t* own,
                                  const int32_t* own_end, int64_t* out, const int64_t* out_end) {
  write_positions(words, leave_out, candidates, own, own_end, out, out_end);
}

// K draws in order, by counting how often each rank comes: there are fewer ranks than draws.
template <class Out>
static void draw_repeated(int64_t candidates, int64_t k, uint64_t seed, const int32_t* own, const int32_t* own_end,
                          Out* out) {
  std::vector<int64_t> counts(candidates);
  for (int64_t j = 0; j < k; ++j) ++counts[random_below(static_cast<uint32_t>(candidates), seed, j)];
  int64_t position = 0;
  for (const int64_t count : counts) {
    for (; own < own_end && *own == position; ++own) ++position;
    out = std::fill_n(out, count, static_cast<Out>(position++));
  }
}

struct NegativesCpu {
  template <class Out>
  static void sample(const NegativesInput& in, Out* negatives) {
    const int64_t* labels = in.labels_data();
    const int64_t* index = in.index_data();
    const uint64_t key = static_cast<uint64_t>(*in.key_data());
    // Here, because parallel regions may lose an error's text.
    LabelSlots slots(in.b);
    std::vector<int32_t> slot_of_row(in.b);
    for (int64_t b = 0; b < in.b; ++b) {
      STD_TORCH_CHECK(index[b] >= 0 && index[b] < in.n, "index: position ", index[b], " is out of range [0, ", in.n,
                      ")");
      slot_of_row[b] = slots.insert(labels[index[b]]);
    }
    const ClassPositions positions(slots, labels, in.n);
    STD_TORCH_CHECK(positions.end(0) - positions.begin(0) < in.n, "labels: there is one class only");

    parallel_rows(in.b, in.n / kWordBits + 2 * in.k, [&](int64_t begin, int64_t end) {
      std::vector<uint64_t> words;
      for (int64_t b = begin; b < end; ++b) {
        const int32_t* own = positions.begin(slot_of_row[b]);
        const int32_t* own_end = positions.end(slot_of_row[b]);
        const int64_t candidates = in.n - (own_end - own);
        const uint64_t seed = random_word(key, b);
        const NegativesPlan plan(candidates, in.k);
        Out* out = negatives + b * in.k;
        if (plan.with_replacement) {
          draw_repeated(candidates, in.k, seed, own, own_end, out);
          continue;
        }
        words.assign(divide_up(candidates, kWordBits), 0);
        draw_distinct(words.data(), static_cast<uint32_t>(candidates), plan.distinct, seed);
        write_row(words.data(), plan.leave_out, candidates, own, own_end, out, out + in.k);
      }
    });
  }
};

}  // namespace sftn

STABLE_TORCH_LIBRARY_IMPL(sftn_fast, CPU, m) {
  m.impl("sample_negatives", TORCH_BOX(&sftn::sample_negatives<sftn::NegativesCpu>));
}
