// The CUDA kernels on the emulator, as torch.ops.sftn_fast_emulated.*, and the emulator's controls for the tests.
//
// A plain library for ctypes: bindings of a Python extension would take longer to compile than most kernels.
#include <cuda_runtime.h>

#include <cstdint>

#include "csrc/schemas.h"

STABLE_TORCH_LIBRARY(sftn_fast_emulated, m) { sftn::define_ops(m); }

#define EXPORT extern "C" __attribute__((visibility("default")))

// 0 runs blocks, warps and lanes in order; any other seed shuffles them.
EXPORT void simt_set_seed(unsigned seed) { simt_emulator::schedule.seed = seed; }

// How many multiprocessors the device claims to have; kernels size their grids by it.
EXPORT void simt_set_multiprocessors(int count) { simt_emulator::multiprocessors = count; }

// Kernel launches, and blocks run, since simt_reset().
EXPORT int64_t simt_launches() { return simt_emulator::counters.launches; }
EXPORT int64_t simt_blocks() { return simt_emulator::counters.blocks; }

EXPORT void simt_reset() {
  simt_emulator::schedule = {};
  simt_emulator::counters = {};
  simt_emulator::multiprocessors = simt_emulator::kMultiprocessors;
}
