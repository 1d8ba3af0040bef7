// The bits of floats as integers. Where a loop chooses between floats by comparing them twice, GCC computes all
// outcomes under masks; choices between integers cost an instruction each. Positive floats are ordered as their bits
// are.
#pragma once

#include <limits>
#include <type_traits>

#include "vector.h"

namespace sftn {

template <class A>
using Bits = std::conditional_t<sizeof(A) == 8, int64_t, int32_t>;

template <class A>
SFTN_INLINE Bits<A> bits_of(A x) {
  return bit_cast<Bits<A>>(x);
}

template <class A>
constexpr Bits<A> kSignBit = std::numeric_limits<Bits<A>>::min();

// x, or 0 if it is NaN
template <class A>
SFTN_INLINE A zero_if_nan(A x) {
  const Bits<A> bits = bits_of(x), infinity = bits_of(std::numeric_limits<A>::infinity());
  return bit_cast<A>((bits & ~kSignBit<A>) > infinity ? Bits<A>(0) : bits);
}

// max(x, 0) of a number
template <class A>
SFTN_INLINE A at_least_zero(A x) {
  const Bits<A> bits = bits_of(x);
  return bit_cast<A>(bits < 0 ? Bits<A>(0) : bits);
}

}  // namespace sftn
