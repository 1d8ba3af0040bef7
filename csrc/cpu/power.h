// x^p for x >= 0 and a p other than 0, branch-free: 2^(p log2 x).
//
// x = 2^e m with m from sqrt(1/2) to sqrt(2). Its logarithm is the series of 2 artanh((m - 1) / (m + 1)), cut where the
// next term is below the last place (float 6e-9, double 7e-18). The result's relative error is that of the
// exponent, p log2 x, rounded: some 1e-6 in float at p = 3 and x = 1000. Subnormal x count as 2^-126, in double
// 2^-1022; results below that are 0.
#pragma once

#include <limits>

#include "exp.h"

namespace sftn {

// of a finite x > 0
SFTN_INLINE float log2_of_positive(float x) {
  const float held = x < 0x1p-126f ? 0x1p-126f : x;
  const int32_t bits = bit_cast<int32_t>(held), e = (bits - 0x3F3504F3) >> 23;  // sqrt(1/2)
  const float m = bit_cast<float>(bits - (e << 23)), z = (m - 1) / (m + 1), w = z * z;
  const float series = 1 + w * (1.f / 3 + w * (1.f / 5 + w * (1.f / 7 + w * (1.f / 9))));
  return float(e) + z * series * 2.885390081777927f;  // 2 / ln 2
}

SFTN_INLINE double log2_of_positive(double x) {
  const double held = x < 0x1p-1022 ? 0x1p-1022 : x;
  const int64_t bits = bit_cast<int64_t>(held);
  // The exponent comes from the low bits of 1.5 * 2^52 + e: few machines convert a vector of 64-bit integers.
  const int64_t e = ((bits - 0x3FE6A09E667F3BCD) >> 52);
  const double as_double = bit_cast<double>(e + 0x4338000000000000) - 6755399441055744.0;
  const double m = bit_cast<double>(bits - (e << 52)), z = (m - 1) / (m + 1), w = z * z;
  double series = 1.0 / 23;
  series = series * w + 1.0 / 21;
  series = series * w + 1.0 / 19;
  series = series * w + 1.0 / 17;
  series = series * w + 1.0 / 15;
  series = series * w + 1.0 / 13;
  series = series * w + 1.0 / 11;
  series = series * w + 1.0 / 9;
  series = series * w + 1.0 / 7;
  series = series * w + 1.0 / 5;
  series = series * w + 1.0 / 3;
  series = series * w + 1.0;
  return as_double + z * series * 2.885390081777926815;
}

template <class A>
SFTN_INLINE A fast_power(A x, A p) {
  constexpr A kInfinity = std::numeric_limits<A>::infinity();
  constexpr A kHighest = std::numeric_limits<A>::max_exponent;  // 2 to this is infinity
  const A of_special = x == 0 ? -kInfinity : x;                 // infinity and NaN
  const A y = p * (x > 0 && x < kInfinity ? log2_of_positive(x) : of_special);
  return fast_exp2(y > kHighest ? kHighest : y);
}

}  // namespace sftn
