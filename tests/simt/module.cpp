// The CUDA kernels on the emulator, as torch.ops.sftn_fast_emulated.*, and the emulator's controls for the tests.
#include <cuda_runtime.h>
#include <pybind11/pybind11.h>

#include "csrc/contrastive.h"
#include "csrc/logits.h"

STABLE_TORCH_LIBRARY(sftn_fast_emulated, m) {
  m.def(sftn::kContrastiveForwardSchema);
  m.def(sftn::kContrastiveNormalizersSchema);
  m.def(sftn::kContrastiveUpdateSchema);
  m.def(sftn::kLogitsForwardSchema);
  m.def(sftn::kLogitsBackwardSchema);
}

PYBIND11_MODULE(sftn_emulated, m) {
  m.doc() = "CUDA kernels on a CPU. Importing it registers torch.ops.sftn_fast_emulated.";
  m.def(
      "set_seed", [](unsigned seed) { simt_emulator::schedule.seed = seed; }, pybind11::arg("seed"),
      "0 runs blocks, warps and lanes in order; any other seed shuffles them.");
  m.def(
      "set_multiprocessors", [](int count) { simt_emulator::multiprocessors = count; }, pybind11::arg("count"),
      "How many multiprocessors the device claims to have; kernels size their grids by it.");
  m.def("launches", [] { return simt_emulator::counters.launches; }, "Kernel launches since reset().");
  m.def("blocks", [] { return simt_emulator::counters.blocks; }, "Blocks run since reset().");
  m.def("reset", [] {
    simt_emulator::schedule = {};
    simt_emulator::counters = {};
    simt_emulator::multiprocessors = simt_emulator::kMultiprocessors;
  });
}
