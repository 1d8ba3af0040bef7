// Vectorisation of CPU loops: plain loops under `#pragma omp simd`. level.h compiles them for several instruction sets.
#pragma once

#include <cstdint>
#include <cstring>

// The ABI for returning vectors differs between levels, so functions that do are always inlined.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wpsabi"
#endif

#define SFTN_INLINE inline __attribute__((always_inline))

namespace sftn {

template <class To, class From>
SFTN_INLINE To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "a bit cast keeps the size");
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

// Formulas may be of float, double or a block of these (block.h), whose names for what C++ writes as operators these
// are.
template <class A>
SFTN_INLINE A select(bool condition, A a, A b) {
  return condition ? a : b;
}
template <class To, class From>
SFTN_INLINE To converted(From from) {
  return static_cast<To>(from);
}
template <class V>
struct ScalarOf {
  using type = V;
};

}  // namespace sftn
