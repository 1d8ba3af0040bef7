// All differences between nvcc and the host compiler that builds the kernels for the emulator (tests/simt). Apart from
// this file, kernels are plain CUDA without PTX, CUB or cooperative groups.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#ifndef SIMT_EMULATOR
#undef NDEBUG  // device assertions stay in release builds
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>
#include <torch/headeronly/util/shim_utils.h>

#include <cassert>
#endif

#ifdef SIMT_EMULATOR
#define SFTN_NAMESPACE sftn_fast_emulated
#define SFTN_DISPATCH_KEY CPU
#define SFTN_CUDA_CHECK(call) static_cast<void>(call)
#define SFTN_DEVICE_ASSERT(condition) \
  ((condition) ? void() : simt_emulator::block.fail("assertion failed: " #condition))
#else
#define SFTN_NAMESPACE sftn_fast
#define SFTN_DISPATCH_KEY CUDA
#define SFTN_CUDA_CHECK(call) STD_CUDA_CHECK(call)
#define SFTN_DEVICE_ASSERT(condition) assert(condition)
// An array of static shared memory.
#define SIMT_SHARED(type, name, count) __shared__ type name[count]
// The launch's dynamic shared memory.
#define SIMT_DYNAMIC_SHARED(type, name)          \
  extern __shared__ uint4 simt_dynamic_shared[]; \
  type* const name = reinterpret_cast<type*>(simt_dynamic_shared)
#endif

namespace sftn::simt {

constexpr int kWarpSize = 32;

// Makes the device current during its lifetime. Its stream is the one PyTorch would launch on.
class DeviceScope {
 public:
#ifdef SIMT_EMULATOR
  explicit DeviceScope(int32_t /*device*/) {}
#else
  explicit DeviceScope(int32_t device) : guard_(device) {
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
    stream_ = static_cast<cudaStream_t>(stream);
  }
#endif
  cudaStream_t stream() const { return stream_; }

 private:
#ifndef SIMT_EMULATOR
  torch::stable::accelerator::DeviceGuard guard_;
#endif
  cudaStream_t stream_ = nullptr;
};

inline int multiprocessors(int32_t device) {
  int count = 0;
  SFTN_CUDA_CHECK(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device));
  return count;
}

// Bytes of dynamic shared memory that a launch may ask for, of a kernel with at most 1 KiB of static shared memory.
inline std::size_t max_dynamic_shared(int32_t device) {
  int bytes = 0;
  SFTN_CUDA_CHECK(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  return static_cast<std::size_t>(bytes) - 1024;
}

// kernel<<<grid, threads, 0, stream>>>(arguments...)
template <class... P, class... A>
void launch(void (*kernel)(P...), dim3 grid, dim3 threads, cudaStream_t stream, A&&... arguments) {
#ifdef SIMT_EMULATOR
  static_cast<void>(stream);
  simt_emulator::launch(kernel, grid, threads, arguments...);
#else
  // clang-format off
  kernel<<<grid, threads, 0, stream>>>(static_cast<P>(arguments)...);
  // clang-format on
  SFTN_CUDA_CHECK(cudaGetLastError());
#endif
}

// kernel<<<grid, threads, bytes, stream>>>(arguments...). More than 48 KiB need the kernel's attribute.
template <class... P, class... A>
void launch_with_shared(void (*kernel)(P...), dim3 grid, dim3 threads, std::size_t bytes, cudaStream_t stream,
                        A&&... arguments) {
  constexpr std::size_t kWithoutAttribute = 48 << 10;
  if (bytes > kWithoutAttribute) {
    SFTN_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)));
  }
#ifdef SIMT_EMULATOR
  static_cast<void>(stream);
  simt_emulator::launch_with_shared(kernel, grid, threads, bytes, arguments...);
#else
  // clang-format off
  kernel<<<grid, threads, bytes, stream>>>(static_cast<P>(arguments)...);
  // clang-format on
  SFTN_CUDA_CHECK(cudaGetLastError());
#endif
}

}  // namespace sftn::simt
