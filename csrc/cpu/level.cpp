// The level of vector instructions in use, and the ops that tell and change it. Levels are numbers, sets of them bits.
#include "level.h"

#include <torch/csrc/stable/library.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>

namespace sftn {

// The levels that the machine has and the library was built with, a bit for each.
static int usable_levels() { return SFTN_BUILT_LEVELS & ((2 << machine_level()) - 1); }

static int highest_level() {
  for (int level = kAvx512Level; level > kDefaultLevel; --level) {
    if (usable_levels() & (1 << level)) return level;
  }
  return kDefaultLevel;
}

std::atomic<int> cpu_level{highest_level()};

static int64_t get_cpu_level() { return cpu_level; }

static void set_cpu_level(int64_t level) {
  const bool known = level >= kDefaultLevel && level <= kAvx512Level;
  STD_TORCH_CHECK(known && (usable_levels() & (1 << level)), "level must be one of cpu_levels(), got ", level);
  cpu_level = static_cast<int>(level);
}

static int64_t get_cpu_levels() { return usable_levels(); }

static int64_t get_machine_cpu_level() { return machine_level(); }

}  // namespace sftn

STABLE_TORCH_LIBRARY_FRAGMENT(sftn_fast, m) {
  m.def("cpu_level() -> int");
  m.def("cpu_levels() -> int");
  m.def("machine_cpu_level() -> int");
  m.def("set_cpu_level(int level) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(sftn_fast, CompositeExplicitAutograd, m) {
  m.impl("cpu_level", TORCH_BOX(&sftn::get_cpu_level));
  m.impl("cpu_levels", TORCH_BOX(&sftn::get_cpu_levels));
  m.impl("machine_cpu_level", TORCH_BOX(&sftn::get_machine_cpu_level));
  m.impl("set_cpu_level", TORCH_BOX(&sftn::set_cpu_level));
}
