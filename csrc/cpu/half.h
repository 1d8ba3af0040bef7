// Half-precision rows to float and back, in integer arithmetic that vectorises on any machine.
#pragma once

#include "../tensor.h"
#include "exp.h"

namespace sftn {

SFTN_INLINE float widen(BFloat16 value) { return bit_cast<float>(static_cast<uint32_t>(value.x) << 16); }

SFTN_INLINE float widen(Half value) {
  const uint32_t magnitude = value.x & 0x7FFFu, sign = static_cast<uint32_t>(value.x & 0x8000u) << 16;
  // Moved to float's place the exponent is 112 too small; a product puts that right, for subnormals as well.
  const uint32_t finite = bit_cast<uint32_t>(bit_cast<float>(magnitude << 13) * 0x1p112f);
  const uint32_t special = magnitude >= 0x7C00u ? 0x7F800000u : 0u;  // infinity or NaN
  return bit_cast<float>(sign | finite | special);
}

// Both round to nearest, ties to even.
SFTN_INLINE void narrow(float value, BFloat16& result) {
  const uint32_t bits = bit_cast<uint32_t>(value);
  const uint32_t rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
  result.x = static_cast<uint16_t>((bits & 0x7FFFFFFFu) > 0x7F800000u ? 0x7FC0u : rounded);
}

SFTN_INLINE void narrow(float value, Half& result) {
  const uint32_t bits = bit_cast<uint32_t>(value), magnitude = bits & 0x7FFFFFFFu, sign = (bits >> 16) & 0x8000u;
  const uint32_t normal = (magnitude - (112u << 23) + 0xFFFu + ((magnitude >> 13) & 1u)) >> 13;
  // The last place of 0.5 is the unit of half's subnormals: the sum rounds to it.
  const uint32_t subnormal = bit_cast<uint32_t>(bit_cast<float>(magnitude) + 0.5f) - bit_cast<uint32_t>(0.5f);
  uint32_t half = magnitude < 0x38800000u ? subnormal : normal;  // 2^-14
  half = magnitude >= 0x477FF000u ? 0x7C00u : half;              // 65520 and above round to infinity
  half = magnitude > 0x7F800000u ? 0x7E00u : half;
  result.x = static_cast<uint16_t>(sign | half);
}

}  // namespace sftn
