// The CUDA kernels on the emulator, as torch.ops.sftn_fast_emulated.*, and the emulator's controls for the tests.
//
// A plain library for ctypes: bindings of a Python extension would take longer to compile than most kernels.
#include <cuda_runtime.h>

#include <cstdint>
#include <string>

#include "csrc/schemas.h"
#include "csrc/tensor.h"

STABLE_TORCH_LIBRARY(sftn_fast_emulated, m) { sftn::define_ops(m); }

#define EXPORT extern "C" __attribute__((visibility("default")))

// 0 runs blocks, warps and lanes in order; any other seed shuffles them.
EXPORT void simt_set_seed(unsigned seed) { simt_emulator::schedule.seed = seed; }

// How many blocks of a larger grid run, for counts at sizes that take too long in whole. 0: all.
EXPORT void simt_set_sample(unsigned blocks) {
  simt_emulator::schedule.sample = blocks;
  simt_emulator::use_new_stream();
}

// How many multiprocessors the device claims to have; kernels size their grids by it.
EXPORT void simt_set_multiprocessors(int count) { simt_emulator::multiprocessors = count; }

// Kernel launches, blocks run and memory set by calls of the host, since simt_reset().
EXPORT int64_t simt_launches() { return simt_emulator::counters.launches; }
EXPORT int64_t simt_blocks() { return simt_emulator::counters.blocks; }
EXPORT int64_t simt_memsets() { return simt_emulator::memsets; }

// What the current stream claims to be, and the capture that records it, 0 outside of one.
EXPORT void simt_set_stream(uint64_t stream, uint64_t capture) {
  simt_emulator::stream_id = stream;
  simt_emulator::capture_id = capture;
}

#if defined(__SANITIZE_THREAD__)
// csrc/tensor.h allocates through this function, and the linker puts the wrapper in its place: fresh memory holds a
// pattern that tells a read of what no kernel wrote.
extern "C" AOTITorchError __real_aoti_torch_empty_strided(int64_t, const int64_t*, const int64_t*, int32_t, int32_t,
                                                          int32_t, AtenTensorHandle*);
extern "C" AOTITorchError __wrap_aoti_torch_empty_strided(int64_t dims, const int64_t* sizes, const int64_t* strides,
                                                          int32_t dtype, int32_t device_type, int32_t device,
                                                          AtenTensorHandle* out) {
  const AOTITorchError error = __real_aoti_torch_empty_strided(dims, sizes, strides, dtype, device_type, device, out);
  if (error != 0) return error;
  void* data = nullptr;
  int64_t bytes = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_data_ptr(*out, &data));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_storage_size(*out, &bytes));
  auto* word = static_cast<uint32_t*>(data);
  // A sample of the blocks leaves holes, which later kernels read.
  const uint32_t fresh = simt_emulator::schedule.sample ? 0 : simt_emulator::kUnwritten;
  for (int64_t i = 0; i < bytes / 4; ++i) word[i] = fresh;
  return error;
}

// Whether kernels' accesses are counted, which is slow.
EXPORT void simt_count_accesses(int on) { simt_emulator::memory.counting = on != 0; }

// The launches that were counted, as JSON. Kernels and sites are addresses in the library. Valid until the next call.
EXPORT const char* simt_counted_launches() {
  static std::string text;
  const auto field = [](const char* name, auto value) {
    return "\"" + std::string(name) + "\": " + std::to_string(value);
  };
  text = "[";
  for (const simt_emulator::LaunchCount& launch : simt_emulator::memory.launches) {
    text += (text.size() > 1 ? ", {" : "{") + field("kernel", launch.kernel) + ", " +
            field("blocks", launch.grid.count()) + ", " + field("blocks_run", launch.blocks_run) + ", " +
            field("threads", launch.threads.count()) + ", " + field("dynamic_bytes", launch.dynamic_bytes) + ", " +
            field("shared_read", launch.shared_read) + ", " + field("shared_written", launch.shared_written) + ", " +
            field("shuffles", launch.shuffles) + ", " + field("barriers", launch.barriers) + ", " +
            field("exponentials", launch.exponentials) + ", " + field("roots", launch.roots) + ", \"sites\": [";
    const char* separator = "";
    for (const auto& [address, site] : launch.sites) {
      text += separator + ("{" + field("address", address)) + ", " + field("write", int(site.write)) + ", " +
              field("requests", site.requests) + ", " + field("bytes", site.bytes) + ", " +
              field("lane_bytes", site.lane_bytes) + ", " + field("sectors", site.sectors) + ", " +
              field("fewest", site.fewest) + "}";
      separator = ", ";
    }
    text += "]}";
  }
  text += "]";
  return text.c_str();
}
#endif

EXPORT void simt_reset() {
#if defined(__SANITIZE_THREAD__)
  simt_emulator::memory.counting = false;
  simt_emulator::memory.launches.clear();
#endif
  simt_emulator::schedule = {};
  simt_emulator::counters = {};
  simt_emulator::memsets = 0;
  simt_set_stream(0, 0);
  simt_emulator::multiprocessors = simt_emulator::kMultiprocessors;
}
