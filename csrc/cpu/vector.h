// Vectorisation of CPU loops: plain loops under `#pragma omp simd`. level.h compiles them for several instruction sets.
#pragma once

#include <cstdint>
#include <cstring>

#define SFTN_INLINE inline __attribute__((always_inline))

namespace sftn {

template <class To, class From>
SFTN_INLINE To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "a bit cast keeps the size");
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

}  // namespace sftn
