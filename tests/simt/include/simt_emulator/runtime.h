// The host's side of CUDA: streams, memory, the device's properties.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>

using cudaStream_t = void*;
using cudaError_t = int;
constexpr cudaError_t cudaSuccess = 0, cudaErrorInvalidValue = 1;
inline cudaError_t cudaGetLastError() { return cudaSuccess; }

namespace simt_emulator {
inline std::int64_t memsets = 0;  // operations of the device beside the launches
}  // namespace simt_emulator

inline cudaError_t cudaMemsetAsync(void* address, int value, std::size_t bytes, cudaStream_t = nullptr) {
  ++simt_emulator::memsets;
  std::memset(address, value, bytes);
  return cudaSuccess;
}

enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount = 16 };

namespace simt_emulator {
// Few, so that even small tests have blocks with several rows and grids with several blocks.
constexpr int kMultiprocessors = 2;
inline int multiprocessors = kMultiprocessors;

constexpr std::size_t kMaxStaticShared = 48 << 10, kMaxDynamicShared = 227 << 10;
inline std::map<const void*, std::size_t> dynamic_shared_limits;  // of kernels that asked for more than 48 KiB
}  // namespace simt_emulator

inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int /*device*/) {
  *value = simt_emulator::multiprocessors;
  return cudaSuccess;
}

enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };

template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel* kernel, cudaFuncAttribute, int bytes) {
  if (bytes < 0 || static_cast<std::size_t>(bytes) > simt_emulator::kMaxDynamicShared) return cudaErrorInvalidValue;
  simt_emulator::dynamic_shared_limits[reinterpret_cast<const void*>(kernel)] = static_cast<std::size_t>(bytes);
  return cudaSuccess;
}
