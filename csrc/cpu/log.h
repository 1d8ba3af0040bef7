// A branch-free natural logarithm of a positive, normal quotient.
//
// r = 2^k (1 + f) with 1 + f from sqrt(1/2) to sqrt(2): subtracting the bits of sqrt(1/2) leaves k in the exponent.
// log(1 + f) = 2 atanh(s) with s = f / (2 + f), |s| <= 0.172. In float it is s times a cubic in s^2, interpolated at
// Chebyshev's points (relative error 2e-9), in double its Taylor series to s^21 (6e-19).
//
// If r is near 1, its logarithm is near r - 1, and r itself has lost the last digits of that. So the caller also passes
// r - 1, computed from the difference of numerator and denominator. It is used if k is 0. V is float, double or a block
// of these.
#pragma once

#include "vector.h"

namespace sftn {

// k and 1 + f of a logarithm's argument.
template <class V>
struct LogParts {
  V k, mantissa;
};

template <class V>
SFTN_INLINE LogParts<V> log_parts(V r, float) {
  constexpr int32_t kHalfRoot = 0x3F3504F3;  // sqrt(1/2)
  const auto above = bit_cast<int32_t>(r) - kHalfRoot;
  return {converted<float>(above >> 23), bit_cast<float>((above & 0x7FFFFF) + kHalfRoot)};
}

template <class V>
SFTN_INLINE LogParts<V> log_parts(V r, double) {
  constexpr int64_t kHalfRoot = 0x3FE6A09E667F3BCD;
  constexpr double kRound = 6755399441055744.0;  // 1.5 * 2^52
  const auto bits = bit_cast<uint64_t>(r);
  // k + 1023, converted to double through a sum's low bits: few machines convert vectors of 64-bit integers.
  const auto biased = (bits + (uint64_t{1023} << 52) - uint64_t(kHalfRoot)) >> 52;
  const V k = bit_cast<double>(biased + bit_cast<uint64_t>(kRound)) - (kRound + 1023.0);
  return {k, bit_cast<double>(bits - ((biased - uint64_t(1023)) << 52))};
}

// log(1 + f)
template <class V>
SFTN_INLINE V log_series(V f, float) {
  const V s = f / (2.f + f), z = s * s;
  V p = 0.14962195f;
  p = p * z + 0.19987425f;
  p = p * z + 0.3333341f;
  p = p * z + 1.f;
  return 2.f * s * p;
}

template <class V>
SFTN_INLINE V log_series(V f, double) {
  const V s = f / (2.0 + f), z = s * s;
  V p = 1.0 / 21;
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
  return 2.0 * s * p;
}

template <class V>
SFTN_INLINE V fast_log(V r, V r_less_1) {
  using A = typename ScalarOf<V>::type;
  const LogParts<V> parts = log_parts(r, A());
  return parts.k * A(0.6931471805599453) + log_series(select(parts.k == 0, r_less_1, parts.mantissa - A(1)), A());
}

// The same of an r whose distance from 1 is in r itself.
template <class V>
SFTN_INLINE V fast_log(V r) {
  using A = typename ScalarOf<V>::type;
  const LogParts<V> parts = log_parts(r, A());
  return parts.k * A(0.6931471805599453) + log_series(parts.mantissa - A(1), A());
}

}  // namespace sftn
