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
// What the current stream claims to be; launches run at once whatever it is. capture: 0 outside of one.
inline unsigned long long stream_id = 0, capture_id = 0;
// Streams for launches of which a sample of the blocks runs. Counters then wait for the rest of the grid, so each such
// launch has a stream, and with it counters, that no other uses.
inline void use_new_stream() {
  static unsigned long long last = 1ull << 32;
  stream_id = ++last;
}
inline std::int64_t memsets = 0;  // operations of the device beside the launches
}  // namespace simt_emulator

inline cudaError_t cudaMemsetAsync(void* address, int value, std::size_t bytes, cudaStream_t = nullptr) {
  ++simt_emulator::memsets;
  std::memset(address, value, bytes);
  return cudaSuccess;
}

inline cudaError_t cudaStreamGetId(cudaStream_t, unsigned long long* id) {
  *id = simt_emulator::stream_id;
  return cudaSuccess;
}

enum cudaStreamCaptureStatus { cudaStreamCaptureStatusNone, cudaStreamCaptureStatusActive };

inline cudaError_t cudaStreamGetCaptureInfo(cudaStream_t, cudaStreamCaptureStatus* status, unsigned long long* id) {
  *status = simt_emulator::capture_id == 0 ? cudaStreamCaptureStatusNone : cudaStreamCaptureStatusActive;
  if (simt_emulator::capture_id != 0) *id = simt_emulator::capture_id;  // else not written, as on a GPU
  return cudaSuccess;
}

enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount = 16, cudaDevAttrMaxSharedMemoryPerBlockOptin = 97 };

namespace simt_emulator {
// Few, so that even small tests have blocks with several rows and grids with several blocks.
constexpr int kMultiprocessors = 2;
inline int multiprocessors = kMultiprocessors;

constexpr std::size_t kMaxStaticShared = 48 << 10, kMaxDynamicShared = 227 << 10;
inline std::map<const void*, std::size_t> dynamic_shared_limits;  // of kernels that asked for more than 48 KiB
}  // namespace simt_emulator

inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int /*device*/) {
  *value = attribute == cudaDevAttrMultiProcessorCount ? simt_emulator::multiprocessors
                                                       : static_cast<int>(simt_emulator::kMaxDynamicShared);
  return cudaSuccess;
}

enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };

template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel* kernel, cudaFuncAttribute, int bytes) {
  if (bytes < 0 || static_cast<std::size_t>(bytes) > simt_emulator::kMaxDynamicShared) return cudaErrorInvalidValue;
  simt_emulator::dynamic_shared_limits[reinterpret_cast<const void*>(kernel)] = static_cast<std::size_t>(bytes);
  return cudaSuccess;
}
