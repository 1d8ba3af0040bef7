// A branch-free natural logarithm of a positive, normal quotient.
//
// r = 2^k (1 + f) with 1 + f from sqrt(1/2) to sqrt(2): subtracting the bits of sqrt(1/2) leaves k in the exponent.
// log(1 + f) = 2 atanh(s) with s = f / (2 + f), |s| <= 0.172: its Taylor series, to s^9 in float (relative error 2e-9)
// and to s^21 in double (6e-19).
//
// If r is near 1, its logarithm is near r - 1, and r itself has lost the last digits of that. So the caller also passes
// r - 1, computed from the difference of numerator and denominator. It is used if k is 0.
#pragma once

#include "vector.h"

namespace sftn {

SFTN_INLINE float fast_log(float r, float r_less_1) {
  constexpr int32_t kHalfRoot = 0x3F3504F3;  // sqrt(1/2)
  const int32_t bits = bit_cast<int32_t>(r), k = (bits - kHalfRoot) >> 23;
  const float f = k == 0 ? r_less_1 : bit_cast<float>(bits - k * (1 << 23)) - 1.f;
  const float s = f / (2.f + f), z = s * s;
  float p = 1.f / 9;
  p = p * z + 1.f / 7;
  p = p * z + 1.f / 5;
  p = p * z + 1.f / 3;
  p = p * z + 1.f;
  return static_cast<float>(k) * 0.6931471805599453f + 2 * s * p;
}

SFTN_INLINE double fast_log(double r, double r_less_1) {
  constexpr int64_t kHalfRoot = 0x3FE6A09E667F3BCD;
  constexpr double kRound = 6755399441055744.0;  // 1.5 * 2^52
  const int64_t bits = bit_cast<int64_t>(r);
  const uint64_t shifted = static_cast<uint64_t>(bits - kHalfRoot + (int64_t{1023} << 52));
  // k + 1023, converted to double through a sum's low bits: few machines convert vectors of 64-bit integers.
  const uint64_t biased = shifted >> 52;
  const double k = bit_cast<double>(biased + bit_cast<uint64_t>(kRound)) - (kRound + 1023.0);
  const double mantissa = bit_cast<double>(bits - static_cast<int64_t>((biased - 1023) << 52));
  const double f = k == 0 ? r_less_1 : mantissa - 1.0;
  const double s = f / (2.0 + f), z = s * s;
  double p = 1.0 / 21;
  p = p * z + 1.0 / 19;
  p = p * z + 1.0 / 17;
  p = p * z + 1.0 / 15;
  p = p * z + 1.0 / 13;
  p = p * z + 1.0 / 11;
  p = p * z + 1.0 / 9;
  p = p * z + 1.0 / 7;
  p = p * z + 1.0 / 5;
  p = p * z + 1.0 / 3;
  p = p * z + 1.0;
  return k * 0.6931471805599453 + 2 * s * p;
}

}  // namespace sftn
