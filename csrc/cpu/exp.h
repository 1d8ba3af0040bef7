// A branch-free exponential to base 2 for arguments that are not positive, such as logits less their maximum. The
// caller's scale includes the conversion of the base: exp(x / T) = exp2(x * (log2(e) / T)). V is float, double or a
// block of these.
//
// y = n + f with n an integer and |f| <= 1/2. Adding 1.5 * 2^mantissa rounds y to n. Adding the exponent's bias as well
// leaves n + bias in the low bits of the sum; a shift makes it the exponent of 2^n. 2^f is a polynomial: in float the
// minimax polynomial of degree 6 (relative error 2e-9), in double the Taylor polynomial of exp(f ln 2) to degree 13
// (4e-18). 2^0 is exactly 1, and NaN gives NaN. Arguments are clamped to the exponent whose biased form is 0, where 2^n
// is 0, by a comparison that is one instruction of x86. So -inf and everything that would underflow give exactly 0,
// which callers rely on.
#pragma once

#include "vector.h"

namespace sftn {

constexpr double kLog2E = 1.4426950408889634;

// 2^y = power (1 + rest), where rest is near y ln 2 if y is near 0: 1 has lost its last digits then.
template <class V>
struct Exp2Parts {
  V power, rest;

  SFTN_INLINE V value() const { return (rest + 1) * power; }
  // 2^y - base, of a base of 0 or 1
  SFTN_INLINE V less(V base) const { return (power - base) + power * rest; }
};

template <class V>
SFTN_INLINE Exp2Parts<V> exp2_parts(V y, float) {
  constexpr float kLowest = -127.f, kRound = 12582912.f + 127.f;  // 1.5 * 2^23, and the bias
  const V held = select(V(kLowest) > y, V(kLowest), y);
  const V rounded = held + kRound;
  const V f = held - (rounded - kRound);
  V p = 1.5345812e-4f;
  p = p * f + 1.3399931e-3f;
  p = p * f + 9.6184891e-3f;
  p = p * f + 5.5503286e-2f;
  p = p * f + 2.4022646e-1f;
  p = p * f + 6.9314718e-1f;
  return {bit_cast<float>(bit_cast<uint32_t>(rounded) << 23), p * f};
}

template <class V>
SFTN_INLINE Exp2Parts<V> exp2_parts(V y, double) {
  constexpr double kLowest = -1023.0, kRound = 6755399441055744.0 + 1023.0;  // 1.5 * 2^52, and the bias
  const V held = select(V(kLowest) > y, V(kLowest), y);
  const V rounded = held + kRound;
  const V r = (held - (rounded - kRound)) * 0.6931471805599453;
  V p = 1.0 / 6227020800;
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
  return {bit_cast<double>(bit_cast<uint64_t>(rounded) << 52), p * r};
}

template <class V>
SFTN_INLINE Exp2Parts<V> exp2_parts(V y) {
  return exp2_parts(y, typename ScalarOf<V>::type());
}

template <class V>
SFTN_INLINE V fast_exp2(V y) {
  return exp2_parts(y).value();
}

// exp(y) - 1 - y for |y| up to about 1/2, as y^2 times a Taylor polynomial (relative error 6e-9 in float, below
// rounding in double).
template <class V>
SFTN_INLINE V exp_remainder(V y, float) {
  V p = 1.f / 40320;
  p = p * y + 1.f / 5040;
  p = p * y + 1.f / 720;
  p = p * y + 1.f / 120;
  p = p * y + 1.f / 24;
  p = p * y + 1.f / 6;
  p = p * y + 0.5f;
  return p * (y * y);
}

template <class V>
SFTN_INLINE V exp_remainder(V y, double) {
  V p = 1.0 / 20922789888000;
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

template <class V>
SFTN_INLINE V exp_remainder(V y) {
  return exp_remainder(y, typename ScalarOf<V>::type());
}

}  // namespace sftn
