// The sums of vectors over their lanes.
//
// For functions that SFTN_LEVELS compiles; see wide_vector.h.
#pragma once

#include "wide_vector.h"

namespace sftn {

constexpr int64_t kTogether = 4;  // dot products that are computed side by side, and whose sums are

// The sum of a vector by halves, down to 16 bytes.
template <int kBytes, class A>
SFTN_INLINE Vector<16, A> folded(const Vector<kBytes, A>& vector) {
  constexpr int kQuarters = kBytes / 16;
  Vector<16, A> q[kQuarters];
  std::memcpy(q, &vector, sizeof q);
  for (int half = kQuarters / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) q[i] += q[i + half];
  }
  return q[0];
}

// to[i] = the sum of vectors[i], for kTogether of them: side by side they take a third of the additions.
template <int kBytes, class A>
SFTN_INLINE void store_sums(const Vector<kBytes, A> (&vectors)[kTogether], A* to) {
  Vector<16, A> sums[kTogether];
#pragma GCC unroll 4
  for (int64_t i = 0; i < kTogether; ++i) sums[i] = folded<kBytes, A>(vectors[i]);
  if constexpr (sizeof(A) == 4) {
    const auto a = SFTN_SHUFFLE(sums[0], sums[1], 0, 4, 1, 5) + SFTN_SHUFFLE(sums[0], sums[1], 2, 6, 3, 7);
    const auto b = SFTN_SHUFFLE(sums[2], sums[3], 0, 4, 1, 5) + SFTN_SHUFFLE(sums[2], sums[3], 2, 6, 3, 7);
    const Vector<16, A> all = SFTN_SHUFFLE(a, b, 0, 1, 4, 5) + SFTN_SHUFFLE(a, b, 2, 3, 6, 7);
    std::memcpy(to, &all, sizeof all);
  } else {
    for (int64_t i = 0; i < kTogether; ++i) to[i] = sums[i][0] + sums[i][1];
  }
}

}  // namespace sftn
