#include "half.h"

#include "vector.h"

namespace sftn {

SFTN_CLONES void widen(const BFloat16* from, float* to, int64_t n) {
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) to[j] = bit_cast<float>(static_cast<uint32_t>(from[j].x) << 16);
}

SFTN_CLONES void widen(const Half* from, float* to, int64_t n) {
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) {
    const uint32_t bits = from[j].x, magnitude = bits & 0x7FFFu, sign = (bits & 0x8000u) << 16;
    // Moved to float's place the exponent is 112 too small; a product puts that right, for subnormals as well.
    const uint32_t finite = bit_cast<uint32_t>(bit_cast<float>(magnitude << 13) * 0x1p112f);
    const uint32_t special = magnitude >= 0x7C00u ? 0x7F800000u : 0u;  // infinity or NaN
    to[j] = bit_cast<float>(sign | finite | special);
  }
}

SFTN_CLONES void narrow(const float* from, BFloat16* to, int64_t n) {
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) {
    const uint32_t bits = bit_cast<uint32_t>(from[j]);
    const uint32_t rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
    to[j].x = static_cast<uint16_t>((bits & 0x7FFFFFFFu) > 0x7F800000u ? 0x7FC0u : rounded);
  }
}

SFTN_CLONES void narrow(const float* from, Half* to, int64_t n) {
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) {
    const uint32_t bits = bit_cast<uint32_t>(from[j]), magnitude = bits & 0x7FFFFFFFu, sign = (bits >> 16) & 0x8000u;
    const uint32_t normal = (magnitude - (112u << 23) + 0xFFFu + ((magnitude >> 13) & 1u)) >> 13;
    // The last place of 0.5 is the unit of half's subnormals: the sum rounds to it.
    const uint32_t subnormal = bit_cast<uint32_t>(bit_cast<float>(magnitude) + 0.5f) - bit_cast<uint32_t>(0.5f);
    uint32_t half = magnitude < 0x38800000u ? subnormal : normal;  // 2^-14
    half = magnitude >= 0x477FF000u ? 0x7C00u : half;              // 65520 and above round to infinity
    half = magnitude > 0x7F800000u ? 0x7E00u : half;
    to[j].x = static_cast<uint16_t>(sign | half);
  }
}

}  // namespace sftn
