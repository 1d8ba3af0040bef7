// The level of vector instructions in use, and the ops that tell and change it.
#include "level.h"

#include <torch/csrc/stable/library.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>

namespace sftn {

// The compiler's functions also ask whether the operating system saves the registers. Older compilers are asked for the
// instructions that they know; the rest of a level comes with these in every processor.
static int machine_level() {
#ifdef SFTN_AVX2
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

std::atomic<int> cpu_level{machine_level()};

static int64_t get_cpu_level() { return cpu_level; }

static void set_cpu_level(int64_t level) {
  STD_TORCH_CHECK(level >= kDefaultLevel && level <= machine_level(), "level must be from 0 to ", machine_level(),
                  ", got ", level);
  cpu_level = static_cast<int>(level);
}

static int64_t highest_cpu_level() { return machine_level(); }

}  // namespace sftn

STABLE_TORCH_LIBRARY_FRAGMENT(sftn_fast, m) {
  m.def("cpu_level() -> int");
  m.def("highest_cpu_level() -> int");
  m.def("set_cpu_level(int level) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(sftn_fast, CompositeExplicitAutograd, m) {
  m.impl("cpu_level", TORCH_BOX(&sftn::get_cpu_level));
  m.impl("highest_cpu_level", TORCH_BOX(&sftn::highest_cpu_level));
  m.impl("set_cpu_level", TORCH_BOX(&sftn::set_cpu_level));
}
