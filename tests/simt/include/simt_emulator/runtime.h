// The host's side of CUDA: streams, memory, the device's properties.
#pragma once

#include <cstddef>
#include <cstring>

using cudaStream_t = void*;
using cudaError_t = int;
constexpr cudaError_t cudaSuccess = 0;
inline cudaError_t cudaGetLastError() { return cudaSuccess; }

inline cudaError_t cudaMemsetAsync(void* address, int value, std::size_t bytes, cudaStream_t = nullptr) {
  std::memset(address, value, bytes);
  return cudaSuccess;
}

enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount = 16 };

namespace simt_emulator {
// Few, so that even small tests have blocks with several rows and grids with several blocks.
constexpr int kMultiprocessors = 2;
inline int multiprocessors = kMultiprocessors;
}  // namespace simt_emulator

inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int /*device*/) {
  *value = simt_emulator::multiprocessors;
  return cudaSuccess;
}
