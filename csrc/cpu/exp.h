// A branch-free exponential for arguments that are not positive, which is what is left of logits less their maximum.
//
// x = n ln 2 + r with |r| <= ln(2)/2 gives exp(x) = 2^n exp(r). Adding 1.5 * 2^mantissa rounds x / ln 2 to the integer
// n and leaves n in the low bits of the sum, from where a shift takes it to the exponent of 2^n. exp(r) is its Taylor
// polynomial, to degree 7 (relative error 5e-9) or 13 (4e-18). NaN gives NaN. What would be subnormal gives exactly 0,
// and so does -inf: callers rely on it.
#pragma once

#include <cstring>

#include "vector.h"

namespace sftn {

template <class To, class From>
SFTN_INLINE To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "a bit cast keeps the size");
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

SFTN_INLINE float fast_exp(float x) {
  constexpr float kLowest = -87.33654f;  // log of the least normal number
  constexpr float kRound = 12582912.f;   // 1.5 * 2^23
  const float clamped = x < kLowest ? kLowest : x;
  const float rounded = clamped * 1.44269504f + kRound;
  const float n = rounded - kRound;
  float r = clamped - n * 0.693145752f;  // ln 2 in two parts; n times the first is exact
  r = r - n * 1.42860677e-6f;
  float p = 1.f / 5040;
  p = p * r + 1.f / 720;
  p = p * r + 1.f / 120;
  p = p * r + 1.f / 24;
  p = p * r + 1.f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.f;
  p = p * r + 1.f;
  const float scale = bit_cast<float>((bit_cast<uint32_t>(rounded) << 23) + 0x3F800000u);
  return x < kLowest ? 0.f : p * scale;
}

SFTN_INLINE double fast_exp(double x) {
  constexpr double kLowest = -708.3964185322641;
  constexpr double kRound = 6755399441055744.0;  // 1.5 * 2^52
  const double clamped = x < kLowest ? kLowest : x;
  const double rounded = clamped * 1.4426950408889634 + kRound;
  const double n = rounded - kRound;
  double r = clamped - n * 0.693147180369123816490;
  r = r - n * 1.90821492927058770002e-10;
  double p = 1.0 / 6227020800;
  p = p * r + 1.0 / 479001600;
  p = p * r + 1.0 / 39916800;
  p = p * r + 1.0 / 3628800;
  p = p * r + 1.0 / 362880;
  p = p * r + 1.0 / 40320;
  p = p * r + 1.0 / 5040;
  p = p * r + 1.0 / 720;
  p = p * r + 1.0 / 120;
  p = p * r + 1.0 / 24;
  p = p * r + 1.0 / 6;
  p = p * r + 0.5;
  p = p * r + 1.0;
  p = p * r + 1.0;
  const double scale = bit_cast<double>((bit_cast<uint64_t>(rounded) << 52) + 0x3FF0000000000000u);
  return x < kLowest ? 0.0 : p * scale;
}

}  // namespace sftn
