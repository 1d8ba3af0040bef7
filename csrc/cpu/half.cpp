#include "half.h"

#include "level.h"
#include "wide_vector.h"

namespace sftn {

SFTN_INLINE Half half_of(float value) {
  const uint32_t bits = bit_cast<uint32_t>(value), magnitude = bits & 0x7FFFFFFFu, sign = (bits >> 16) & 0x8000u;
  const uint32_t normal = (magnitude - (112u << 23) + 0xFFFu + ((magnitude >> 13) & 1u)) >> 13;
  // The last place of 0.5 is the unit of half's subnormals: the sum rounds to it.
  const uint32_t subnormal = bit_cast<uint32_t>(bit_cast<float>(magnitude) + 0.5f) - bit_cast<uint32_t>(0.5f);
  uint32_t half = magnitude < 0x38800000u ? subnormal : normal;  // 2^-14
  half = magnitude >= 0x477FF000u ? 0x7C00u : half;              // 65520 and above round to infinity
  half = magnitude > 0x7F800000u ? 0x7E00u : half;
  Half to;
  to.x = static_cast<uint16_t>(sign | half);
  return to;
}

template <int kBytes>
SFTN_INLINE void narrow_values(const float* from, Half* to, int64_t n) {
  int64_t j = 0;
  if constexpr (kBytes > 16) {
    constexpr int64_t kStep = kWidth<kBytes, float>;
    for (; j + kStep <= n; j += kStep) {
      const auto wide = load_vector<kBytes>(from + j);
      Vector<kBytes / 2, uint16_t> half;
      asm("vcvtps2ph $0, %1, %0" : "=v"(half) : "v"(wide));  // 0: to nearest, ties to even
      std::memcpy(to + j, &half, sizeof half);
    }
  }
#pragma omp simd
  for (int64_t i = j; i < n; ++i) to[i] = half_of(from[i]);
}

SFTN_INLINE void narrow_values(const float* from, BFloat16* to, int64_t n) {
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) {
    const uint32_t bits = bit_cast<uint32_t>(from[j]);
    const uint32_t rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
    to[j].x = static_cast<uint16_t>((bits & 0x7FFFFFFFu) > 0x7F800000u ? 0x7FC0u : rounded);
  }
}

SFTN_LEVELS(widen_any, widen_values<kBytes>(args...))
SFTN_LEVELS(narrow_half, narrow_values<kBytes>(args...))
SFTN_LEVELS(narrow_bfloat16, narrow_values(args...))

void widen(const BFloat16* from, float* to, int64_t n) { widen_any(from, n, to); }
void widen(const Half* from, float* to, int64_t n) { widen_any(from, n, to); }
void narrow(const float* from, Half* to, int64_t n) { narrow_half(from, to, n); }
void narrow(const float* from, BFloat16* to, int64_t n) { narrow_bfloat16(from, to, n); }

}  // namespace sftn
