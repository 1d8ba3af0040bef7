// Vectorisation of CPU loops: plain loops under `#pragma omp simd`, compiled for several instruction sets.
//
// A function marked SFTN_CLONES is compiled once for each level, and the loader picks the machine's level. Functions it
// calls, including lambdas, must be SFTN_INLINE, or they stay at the base level. Where clones do not exist (clang, Arm,
// musl), the compiler's target decides; Arm's base level already has vectors. SFTN_PORTABLE takes this way everywhere,
// so that x86 can test what other machines run.
//
// SFTN_LEVELS(define) is for functions with an explicit vector width: it expands define(attribute, bytes) once for each
// level, with the attribute of the function's version and the bytes of the level's vectors.
#pragma once

#include <cstdint>
#include <cstdlib>  // defines __GLIBC__ where it applies
#include <cstring>

#define SFTN_INLINE inline __attribute__((always_inline))

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && defined(__GLIBC__) && !defined(SFTN_PORTABLE)
#if __GNUC__ >= 12
#define SFTN_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#define SFTN_LEVELS(define)                                                                            \
  define(__attribute__((target("default"))), 16) define(__attribute__((target("arch=x86-64-v3"))), 32) \
      define(__attribute__((target("arch=x86-64-v4"))), 64)
#else
#define SFTN_CLONES __attribute__((target_clones("arch=skylake-avx512", "arch=haswell", "default")))
#define SFTN_LEVELS(define)                                                                          \
  define(__attribute__((target("default"))), 16) define(__attribute__((target("arch=haswell"))), 32) \
      define(__attribute__((target("arch=skylake-avx512"))), 64)
#endif
#else
#define SFTN_CLONES
#define SFTN_LEVELS(define) define(, 16)
#endif

namespace sftn {

template <class To, class From>
SFTN_INLINE To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "a bit cast keeps the size");
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

}  // namespace sftn
