// A row of negatives: from the bitmap of ranks to positions, in order.
#pragma once

#include <array>

#include "contrastive_negatives_mark.h"
#include "wide_vector.h"

namespace sftn {

// The ranks of a row's candidates, among n positions.
struct MarkedRanks {
  const uint64_t* words;  // [num_words(candidates)]
  int64_t n;
  bool leave_out;  // whether the marked ranks are left out and the others taken
};

// Writers of base + i for each bit i of a word. They may overwrite up to kSlack elements after the end.
constexpr int64_t kSlack = 16;

// Writes four at once, needed or not: the number of bits is unpredictable, and a mispredicted branch costs more.
template <class Out>
SFTN_INLINE Out* write_few_bits(uint64_t word, int64_t base, Out* out) {
  Out* const behind = out + __builtin_popcountll(word);
  constexpr uint64_t kLastBit = uint64_t{1} << (kWordBits - 1);  // 0 has no first bit, and a branch would cost more
  do {
    for (int64_t i = 0; i < 4; ++i, word &= word - 1) {
      *out++ = static_cast<Out>(base + __builtin_ctzll(word | kLastBit));
    }
  } while (word != 0);
  return behind;
}

// [byte]: the positions of its bits, then zeros
constexpr std::array<std::array<uint8_t, 8>, 256> bits_of_bytes() {
  std::array<std::array<uint8_t, 8>, 256> places{};
  for (unsigned byte = 0; byte < 256; ++byte) {
    for (unsigned bit = 0, count = 0; bit < 8; ++bit) {
      if (byte >> bit & 1) places[byte][count++] = static_cast<uint8_t>(bit);
    }
  }
  return places;
}

// Writes byte by byte, or a vector: the time is the same for every word.
template <int kBytes, class Out>
SFTN_INLINE Out* write_many_bits(uint64_t word, int64_t base, Out* out) {
  if constexpr (kBytes == 64) {
    constexpr int kStep = kWidth<kBytes, Out>;
    Vector<kBytes, Out> places;
    for (int i = 0; i < kStep; ++i) places[i] = static_cast<Out>(base + i);
    for (int64_t at = 0; at < kWordBits; at += kStep, word >>= kStep, places += kStep) {
      const auto bits = static_cast<uint16_t>(word & ((1u << kStep) - 1));
      Vector<kBytes, Out> taken;
      if constexpr (sizeof(Out) == 4) {
        asm("vpcompressd %1, %0%{%2%}%{z%}" : "=v"(taken) : "v"(places), "Yk"(bits));
      } else {
        asm("vpcompressq %1, %0%{%2%}%{z%}" : "=v"(taken) : "v"(places), "Yk"(bits));
      }
      std::memcpy(out, &taken, sizeof taken);
      out += __builtin_popcount(bits);
    }
  } else {
    static constexpr auto kPlaces = bits_of_bytes();
    for (int64_t at = 0; at < kWordBits; at += 8, word >>= 8) {
      const auto& places = kPlaces[word & 0xFF];
      const Out first = static_cast<Out>(base + at);
#pragma omp simd
      for (int i = 0; i < 8; ++i) out[i] = first + places[i];
      out += __builtin_popcountll(word & 0xFF);
    }
  }
  return out;
}

// For the end of the row, where nothing after it may be overwritten.
template <class Out>
SFTN_INLINE Out* write_last_bits(uint64_t word, int64_t base, Out* out) {
  for (; word != 0; word &= word - 1) *out++ = static_cast<Out>(base + __builtin_ctzll(word));
  return out;
}

// Writes the positions of the taken ranks, end - negatives of them, 64 positions at once. The bits of their ranks are
// adjacent in the bitmap and are spread apart around own positions.
template <int kBytes, class Out>
SFTN_INLINE void write_marked_inline(const MarkedRanks& marked, const int32_t* own, const int32_t* own_end,
                                     Out* negatives, const Out* end) {
  const uint64_t flip = marked.leave_out ? ~uint64_t{0} : 0;
  const bool many = end - negatives > marked.n / 8;
  int64_t rank = 0;
  for (int64_t first = 0; first < marked.n; first += kWordBits) {
    const uint64_t* from = marked.words + rank / kWordBits;
    const int64_t offset = rank % kWordBits;
    uint64_t word = (from[0] >> offset | from[1] << 1 << (kWordBits - 1 - offset)) ^ flip;
    rank += kWordBits;
    for (; own < own_end && *own < first + kWordBits; ++own, --rank) {
      const uint64_t below = (uint64_t{1} << (*own - first)) - 1;
      word = (word & below) | (word & ~below) << 1;
    }
    if (marked.n - first < kWordBits) word &= (uint64_t{1} << (marked.n - first)) - 1;
    const bool roomy = end - negatives >= kWordBits + kSlack;
    negatives = !roomy ? write_last_bits(word, first, negatives)
                : many ? write_many_bits<kBytes>(word, first, negatives)
                       : write_few_bits(word, first, negatives);
  }
}

}  // namespace sftn
