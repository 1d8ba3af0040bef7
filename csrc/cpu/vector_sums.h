// The sums of vectors over their lanes.
//
// For functions that SFTN_LEVELS compiles; see wide_vector.h.
#pragma once

#include "bits.h"
#include "wide_vector.h"

namespace sftn {

constexpr int64_t kTogether = 4;  // dot products that are computed side by side, and whose sums are

// Each 16 bytes of a vector are four lanes. Four out of the eight of two vectors, the same of all 16 bytes.
template <int kFirst, int kSecond, int kThird, int kFourth, int kBytes>
SFTN_INLINE Vector<kBytes, float> picked(Vector<kBytes, float> a, Vector<kBytes, float> b) {
#if defined(__clang__)
  static_assert(kBytes == 16, "only GCC has levels");
  return __builtin_shufflevector(a, b, kFirst, kSecond, kThird, kFourth);
#else
  constexpr int kLane[] = {kFirst, kSecond, kThird, kFourth}, kCount = kBytes / 4;
  Vector<kBytes, int32_t> from{};
#pragma GCC unroll 16
  for (int l = 0; l < kCount; ++l) from[l] = l / 4 * 4 + kLane[l % 4] % 4 + kLane[l % 4] / 4 * kCount;
  return __builtin_shuffle(a, b, from);
#endif
}

// The sum of the 16 bytes of a vector, by halves.
template <int kBytes, class A>
SFTN_INLINE Vector<16, A> folded(Vector<kBytes, A> vector) {
#if !defined(__clang__)
  constexpr int kCount = kBytes / int(sizeof(A));
#pragma GCC unroll 4
  for (int half = kCount / 2; half * sizeof(A) >= 16; half /= 2) {
    Vector<kBytes, Bits<A>> from{};
#pragma GCC unroll 16
    for (int l = 0; l < kCount; ++l) from[l] = l ^ half;
    vector += __builtin_shuffle(vector, from);
  }
#endif
  Vector<16, A> sum;
  std::memcpy(&sum, &vector, sizeof sum);
  return sum;
}

// to[i] = the sum of vectors[i], for kTogether of them: side by side they take a third of the additions.
template <int kBytes, class A>
SFTN_INLINE void store_sums(const Vector<kBytes, A> (&vectors)[kTogether], A* to) {
  if constexpr (sizeof(A) == 4) {
    const auto a =
        picked<0, 4, 1, 5, kBytes>(vectors[0], vectors[1]) + picked<2, 6, 3, 7, kBytes>(vectors[0], vectors[1]);
    const auto b =
        picked<0, 4, 1, 5, kBytes>(vectors[2], vectors[3]) + picked<2, 6, 3, 7, kBytes>(vectors[2], vectors[3]);
    const Vector<16, A> all = folded<kBytes, A>(picked<0, 1, 4, 5, kBytes>(a, b) + picked<2, 3, 6, 7, kBytes>(a, b));
    std::memcpy(to, &all, sizeof all);
  } else {
#pragma GCC unroll 4
    for (int64_t i = 0; i < kTogether; ++i) {
      const Vector<16, A> sum = folded<kBytes, A>(vectors[i]);
      to[i] = sum[0] + sum[1];
    }
  }
}

}  // namespace sftn
