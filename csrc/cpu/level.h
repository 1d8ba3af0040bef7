// Levels of vector instructions: functions compiled for each of them, and the level in use.
//
// SFTN_LEVELS(name, call) defines a function template `name`. It is compiled once for each level, and each call runs
// the version of the level in use. `call` is an expression of `args...`, and of `kBytes` where the width of vectors is
// explicit: the bytes of the level's vectors. Functions that it calls, including lambdas, must be SFTN_INLINE, or they
// stay at the lowest level. Braces without a type can't be an argument.
//
// Levels exist for x86-64 and g++. Elsewhere there is one, and the compiler's target decides: Arm's base has vectors.
// SFTN_PORTABLE takes this way everywhere, so that x86 can test what other machines run. SFTN_BUILT_LEVELS chooses the
// levels to compile, a bit for each: they cost the compiler about equal times, and one machine needs one of them.
#pragma once

#include <atomic>
#include <type_traits>

#include "machine_level.h"

namespace sftn {

extern std::atomic<int> cpu_level;  // the level in use: at first the highest that machine and library have

// How a function of a level receives an argument: numbers and pointers in registers, objects by reference.
template <class Arg>
using Passed = std::conditional_t<std::is_scalar_v<std::decay_t<Arg>>, std::decay_t<Arg>,
                                  std::conditional_t<std::is_lvalue_reference_v<Arg>, Arg, const Arg&>>;

}  // namespace sftn

#define SFTN_LEVEL(attribute, name, bytes, ...)    \
  template <class... Args>                         \
  attribute static auto name(Args... args) {       \
    [[maybe_unused]] constexpr int kBytes = bytes; \
    return __VA_ARGS__;                            \
  }

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(SFTN_PORTABLE)
#if __GNUC__ >= 12
#define SFTN_AVX2 "arch=x86-64-v3"
#define SFTN_AVX512 "arch=x86-64-v4"
#else
#define SFTN_AVX2 "arch=haswell"
#define SFTN_AVX512 "arch=skylake-avx512"
#endif
#ifndef SFTN_BUILT_LEVELS
#define SFTN_BUILT_LEVELS 7
#endif

// The version of each level that is built, and its case of the switch.
#define SFTN_CASE(level, version) \
  case ::sftn::level:             \
    return version<::sftn::Passed<Args>...>(args...);

#if SFTN_BUILT_LEVELS & 1
#define SFTN_DEFAULT_VERSION(name, ...) SFTN_LEVEL(, name##_default, 16, __VA_ARGS__)
#define SFTN_DEFAULT_CASE(name) SFTN_CASE(kDefaultLevel, name##_default)
#else
#define SFTN_DEFAULT_VERSION(name, ...)
#define SFTN_DEFAULT_CASE(name)
#endif

#if SFTN_BUILT_LEVELS & 2
#define SFTN_AVX2_VERSION(name, ...) SFTN_LEVEL(__attribute__((target(SFTN_AVX2))), name##_avx2, 32, __VA_ARGS__)
#define SFTN_AVX2_CASE(name) SFTN_CASE(kAvx2Level, name##_avx2)
#else
#define SFTN_AVX2_VERSION(name, ...)
#define SFTN_AVX2_CASE(name)
#endif

#if SFTN_BUILT_LEVELS & 4
#define SFTN_AVX512_VERSION(name, ...) SFTN_LEVEL(__attribute__((target(SFTN_AVX512))), name##_avx512, 64, __VA_ARGS__)
#define SFTN_AVX512_CASE(name) SFTN_CASE(kAvx512Level, name##_avx512)
#else
#define SFTN_AVX512_VERSION(name, ...)
#define SFTN_AVX512_CASE(name)
#endif

// The level in use is always one that is built: without any, Python does not use the library.
#define SFTN_LEVELS(name, ...)                                   \
  SFTN_AVX512_VERSION(name, __VA_ARGS__)                         \
  SFTN_AVX2_VERSION(name, __VA_ARGS__)                           \
  SFTN_DEFAULT_VERSION(name, __VA_ARGS__)                        \
  template <class... Args>                                       \
  static auto name(Args&&... args) {                             \
    switch (::sftn::cpu_level.load(std::memory_order_relaxed)) { \
      SFTN_AVX512_CASE(name)                                     \
      SFTN_AVX2_CASE(name)                                       \
      SFTN_DEFAULT_CASE(name)                                    \
    }                                                            \
    __builtin_unreachable();                                     \
  }
#else
#undef SFTN_BUILT_LEVELS
#define SFTN_BUILT_LEVELS 1
#define SFTN_LEVELS(name, ...)                               \
  SFTN_LEVEL(, name##_default, 16, __VA_ARGS__)              \
  template <class... Args>                                   \
  static auto name(Args&&... args) {                         \
    return name##_default<::sftn::Passed<Args>...>(args...); \
  }
#endif
