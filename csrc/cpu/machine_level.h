// The levels of vector instructions, and the highest that this machine has. setup.py compiles this file alone.
#pragma once

namespace sftn {

// In ascending order, and by PyTorch's names: "default", "avx2", "avx512".
enum CpuLevel { kDefaultLevel, kAvx2Level, kAvx512Level };

// The compiler's functions also ask whether the operating system saves the registers. Older compilers are asked for the
// instructions that they know; the rest of a level comes with these in every processor.
inline int machine_level() {
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(SFTN_PORTABLE)
  __builtin_cpu_init();
#if __GNUC__ >= 12
  if (__builtin_cpu_supports("x86-64-v4")) return kAvx512Level;
  if (__builtin_cpu_supports("x86-64-v3")) return kAvx2Level;
#else
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") &&
                    __builtin_cpu_supports("bmi2");
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vl");
  if (avx2) return avx512 ? kAvx512Level : kAvx2Level;
#endif
#endif
  return kDefaultLevel;
}

}  // namespace sftn
