// CUDA's extensions of C++: qualifiers, built-in types and variables.
#pragma once

#define __global__
#define __device__
#define __host__
#define __constant__
#define __grid_constant__
#define __launch_bounds__(...)
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __align__(n) alignas(n)

// Of functions that run while a kernel's accesses are watched, see memory.h.
#define SIMT_UNWATCHED __attribute__((no_sanitize("thread")))

// There is no __shared__: a static variable could not be poisoned before each block. SIMT_SHARED declares an array of
// `count` values of static shared memory instead, `name`, a pointer here.
#define SIMT_SHARED(type, name, count) \
  static char name##_key;              \
  type* const name = static_cast<type*>(simt_emulator::block.shared(&name##_key, (count) * sizeof(type)))

// The launch's dynamic shared memory.
#define SIMT_DYNAMIC_SHARED(type, name) type* const name = static_cast<type*>(simt_emulator::block.dynamic_shared())

struct uint3 {
  unsigned x, y, z;
};

struct alignas(8) uint2 {
  unsigned x, y;
};

struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

struct alignas(16) float4 {
  float x, y, z, w;
};

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
  constexpr unsigned count() const { return x * y * z; }
};

inline uint3 threadIdx{}, blockIdx{};
inline dim3 blockDim{}, gridDim{};
constexpr int warpSize = 32;
