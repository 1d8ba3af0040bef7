// Device functions: barriers, warp collectives, atomics, loads, arithmetic.
#pragma once

#include <cmath>
#include <cstring>
#include <type_traits>

#include "memory.h"
#include "scheduler.h"

#define SIMT_SITE_ARGUMENTS const char *file = __builtin_FILE(), int line = __builtin_LINE()

inline void __syncthreads(SIMT_SITE_ARGUMENTS) {
  using namespace simt_emulator;
  const Outside outside;
  memory.barrier();
  block.arrive_and_wait(block.barrier(), {"__syncthreads", file, line});
}

inline void __syncwarp(unsigned mask = ~0u, SIMT_SITE_ARGUMENTS) {
  using namespace simt_emulator;
  const Outside outside;
  if (mask != ~0u) block.fail("__syncwarp: only the full mask is emulated");
  block.arrive_and_wait(block.warp().barrier, {"__syncwarp", file, line});
}

namespace simt_emulator {

inline unsigned lane() {
  const Outside outside;
  return block.lane();
}

// A warp collective: every lane stores its value, then reads the value of lane source(own lane).
template <class T, class F>
T exchange(unsigned mask, T value, F source, const Site& site) {
  static_assert(std::is_arithmetic_v<T> && (sizeof(T) == 4 || sizeof(T) == 8), "shuffles take 4 or 8 bytes");
  const Outside outside;
  if (mask != ~0u) block.fail(site.text() + ": only the full mask is emulated");
  Warp& warp = block.warp();
  std::memcpy(warp.slots[block.lane()], &value, sizeof value);
  block.arrive_and_wait(warp.barrier, site);
  const unsigned lane = source(static_cast<int>(block.lane()));
  if (lane >= warp.barrier.members) block.fail(site.text() + " reads a lane that does not exist");
  std::memcpy(&value, warp.slots[lane], sizeof value);
  block.arrive_and_wait(warp.barrier, site);  // no lane stores again before all have read
  return value;
}

template <class T, class F>
T shuffle(unsigned mask, T value, F source, const Site& site) {
  {
    const Outside outside;
    memory.shuffle(sizeof value);
  }
  return exchange(mask, value, source, site);
}

}  // namespace simt_emulator

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, SIMT_SITE_ARGUMENTS) {
  return simt_emulator::shuffle(mask, value, [=](int lane) { return lane / width * width + (source & (width - 1)); },
                                {"__shfl_sync", file, line});
}

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32, SIMT_SITE_ARGUMENTS) {
  const auto source = [=](int lane) {
    const int other = lane ^ lane_mask;
    return other / width <= lane / width ? other : lane;
  };
  return simt_emulator::shuffle(mask, value, source, {"__shfl_xor_sync", file, line});
}

template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, SIMT_SITE_ARGUMENTS) {
  const auto source = [=](int lane) {
    const int other = lane + static_cast<int>(delta);
    return other / width == lane / width ? other : lane;
  };
  return simt_emulator::shuffle(mask, value, source, {"__shfl_down_sync", file, line});
}

template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, SIMT_SITE_ARGUMENTS) {
  const auto source = [=](int lane) {
    const int other = lane - static_cast<int>(delta);
    return other >= lane / width * width ? other : lane;
  };
  return simt_emulator::shuffle(mask, value, source, {"__shfl_up_sync", file, line});
}

inline unsigned __ballot_sync(unsigned mask, int predicate, SIMT_SITE_ARGUMENTS) {
  unsigned lanes = predicate ? 1u << simt_emulator::lane() : 0u;
  for (int step = 1; step < 32; step *= 2) {
    const auto other = [=](int own) { return own ^ step; };
    lanes |= simt_emulator::exchange(mask, lanes, other, {"__ballot_sync", file, line});
  }
  return lanes;
}

#undef SIMT_SITE_ARGUMENTS

// Fibers never run at the same time, so plain arithmetic is atomic.
inline unsigned atomicAdd(unsigned* address, unsigned value) {
  const unsigned old = *address;
  *address += value;
  return old;
}
inline unsigned atomicInc(unsigned* address, unsigned limit) {
  const unsigned old = *address;
  *address = old >= limit ? 0 : old + 1;
  return old;
}
inline unsigned atomicOr(unsigned* address, unsigned value) {
  const unsigned old = *address;
  *address |= value;
  return old;
}
inline unsigned atomicAnd(unsigned* address, unsigned value) {
  const unsigned old = *address;
  *address &= value;
  return old;
}
inline void __threadfence() {}

inline float __fdividef(float a, float b) { return a / b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline double __dmul_rn(double a, double b) { return a * b; }

inline int __popc(unsigned value) { return __builtin_popcount(value); }
inline int __clz(unsigned value) { return value == 0 ? 32 : __builtin_clz(value); }

template <class T>
T __ldg(const T* address) {
  return *address;
}
template <class T>
T __ldcg(const T* address) {
  return *address;
}

// One access whatever the compiler makes of the struct.
template <class T>
SIMT_UNWATCHED __attribute__((noinline)) T __ldca(const T* address) {
  simt_emulator::memory.access(address, sizeof(T), false, __builtin_return_address(0));
  return *address;
}
template <class T>
SIMT_UNWATCHED __attribute__((noinline)) void __stwb(T* address, T value) {
  simt_emulator::memory.access(address, sizeof(T), true, __builtin_return_address(0));
  *address = value;
}

template <class T>
T min(T a, T b) {
  return b < a ? b : a;
}
template <class T>
T max(T a, T b) {
  return a < b ? b : a;
}

// Functions that a GPU has instructions for. As macros: a function of the same name would be ambiguous.
namespace simt_emulator {
SIMT_UNWATCHED inline float counted_exponential(float value) {
  memory.exponential();
  return value;
}
SIMT_UNWATCHED inline float counted_root(float value) {
  memory.root();
  return value;
}
}  // namespace simt_emulator
#define expf(x) simt_emulator::counted_exponential(expf(x))
#define exp2f(x) simt_emulator::counted_exponential(exp2f(x))
#define sqrtf(x) simt_emulator::counted_root(sqrtf(x))
