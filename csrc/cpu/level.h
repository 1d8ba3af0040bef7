// Levels of vector instructions: functions compiled for each of them, and the level in use.
//
// SFTN_LEVELS(name, call) defines a function template `name`. It is compiled once for each level, and each call runs
// the version of the level in use. `call` is an expression of `args...`, and of `kBytes` where the width of vectors is
// explicit: the bytes of the level's vectors. Functions that it calls, including lambdas, must be SFTN_INLINE, or they
// stay at the lowest level. Braces without a type can't be an argument.
//
// Levels exist for x86-64 and g++. Elsewhere there is one, and the compiler's target decides: Arm's base has vectors.
// SFTN_PORTABLE takes this way everywhere, so that x86 can test what other machines run.
#pragma once

#include <atomic>
#include <type_traits>

namespace sftn {

// In ascending order, and by PyTorch's names: "default", "avx2", "avx512".
enum CpuLevel { kDefaultLevel, kAvx2Level, kAvx512Level };

extern std::atomic<int> cpu_level;  // the level in use: at first the machine's highest

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

#define SFTN_LEVELS(name, ...)                                                     \
  SFTN_LEVEL(__attribute__((target(SFTN_AVX512))), name##_avx512, 64, __VA_ARGS__) \
  SFTN_LEVEL(__attribute__((target(SFTN_AVX2))), name##_avx2, 32, __VA_ARGS__)     \
  SFTN_LEVEL(, name##_default, 16, __VA_ARGS__)                                    \
  template <class... Args>                                                         \
  static auto name(Args&&... args) {                                               \
    switch (::sftn::cpu_level.load(std::memory_order_relaxed)) {                   \
      case ::sftn::kAvx512Level:                                                   \
        return name##_avx512<::sftn::Passed<Args>...>(args...);                    \
      case ::sftn::kAvx2Level:                                                     \
        return name##_avx2<::sftn::Passed<Args>...>(args...);                      \
      default:                                                                     \
        return name##_default<::sftn::Passed<Args>...>(args...);                   \
    }                                                                              \
  }
#else
#define SFTN_LEVELS(name, ...)                               \
  SFTN_LEVEL(, name##_default, 16, __VA_ARGS__)              \
  template <class... Args>                                   \
  static auto name(Args&&... args) {                         \
    return name##_default<::sftn::Passed<Args>...>(args...); \
  }
#endif
