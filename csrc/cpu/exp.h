// A branch-free exponential to base 2 for arguments that are not positive, such as logits less their maximum. The
// caller's scale includes the conversion of the base: exp(x / T) = exp2(x * (log2(e) / T)).
//
// y = n + f with n an integer and |f| <= 1/2. Adding 1.5 * 2^mantissa rounds y to n and leaves n in the low bits of the
// sum; a shift moves it to the exponent of 2^n. 2^f is a polynomial: in float the minimax polynomial of degree 6
// (relative error 2e-9), in double the Taylor polynomial of exp(f ln 2) to degree 13 (4e-18). 2^0 is exactly 1, and NaN
// gives NaN. Arguments are clamped to the exponent whose biased form is 0, where 2^n is 0. So -inf and everything that
// would underflow give exactly 0, which callers rely on.
#pragma once

#include "vector.h"

namespace sftn {

constexpr double kLog2E = 1.4426950408889634;

// 2^y = power (1 + rest), where rest is near y ln 2 if y is near 0: 1 has lost its last digits then.
template <class A>
struct Exp2Parts {
  A power, rest;

  SFTN_INLINE A value() const { return (rest + 1) * power; }
  // 2^y - base, of a base of 0 or 1
  SFTN_INLINE A less(A base) const { return (power - base) + power * rest; }
};

SFTN_INLINE Exp2Parts<float> exp2_parts(float y) {
  constexpr float kLowest = -127.f, kRound = 12582912.f;  // 1.5 * 2^23
  const float held = y < kLowest ? kLowest : y;
  const float rounded = held + kRound;
  const float f = held - (rounded - kRound);
  float p = 1.5345812e-4f;
  p = p * f + 1.3399931e-3f;
  p = p * f + 9.6184891e-3f;
  p = p * f + 5.5503286e-2f;
  p = p * f + 2.4022646e-1f;
  p = p * f + 6.9314718e-1f;
  return {bit_cast<float>((bit_cast<uint32_t>(rounded) << 23) + 0x3F800000u), p * f};
}

SFTN_INLINE Exp2Parts<double> exp2_parts(double y) {
  constexpr double kLowest = -1023.0, kRound = 6755399441055744.0;  // 1.5 * 2^52
  const double held = y < kLowest ? kLowest : y;
  const double rounded = held + kRound;
  const double r = (held - (rounded - kRound)) * 0.6931471805599453;
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
  return {bit_cast<double>((bit_cast<uint64_t>(rounded) << 52) + 0x3FF0000000000000u), p * r};
}

template <class A>
SFTN_INLINE A fast_exp2(A y) {
  return exp2_parts(y).value();
}

// exp(y) - 1 - y for |y| up to about 1/2, as y^2 times a Taylor polynomial (relative error 6e-9 in float, below
// rounding in double).
SFTN_INLINE float exp_remainder(float y) {
  float p = 1.f / 40320;
  p = p * y + 1.f / 5040;
  p = p * y + 1.f / 720;
  p = p * y + 1.f / 120;
  p = p * y + 1.f / 24;
  p = p * y + 1.f / 6;
  p = p * y + 0.5f;
  return p * (y * y);
}

SFTN_INLINE double exp_remainder(double y) {
  double p = 1.0 / 20922789888000;
  p = p * y + 1.0 / 1307674368000;
  p = p * y + 1.0 / 87178291200;
  p = p * y + 1.0 / 6227020800;
  p = p * y + 1.0 / 479001600;
  p = p * y + 1.0 / 39916800;
  p = p * y + 1.0 / 3628800;
  p = p * y + 1.0 / 362880;
  p = p * y + 1.0 / 40320;
  p = p * y + 1.0 / 5040;
  p = p * y + 1.0 / 720;
  p = p * y + 1.0 / 120;
  p = p * y + 1.0 / 24;
  p = p * y + 1.0 / 6;
  p = p * y + 0.5;
  return p * (y * y);
}

}  // namespace sftn
