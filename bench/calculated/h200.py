"""An H200 as numbers, and the time that a launch's work implies on it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

MULTIPROCESSORS = 132
CLOCK = 1.98e9
"""Of a multiprocessor under load, as nvidia-smi showed on an H200."""
DRAM = 4.3e12
"""Bytes a second, read and written, of a large copy as measured on an H200."""
L2 = 5.5e12
"""Bytes a second. An assumption: NVIDIA states none, and reports of microbenchmarks on an H100 are from 5 to 7."""
L2_BYTES = 50e6
L2_PORT = 64
"""Bytes a clock from L2 to one multiprocessor."""
PRODUCT = 67e12
"""Floating-point operations a second in float32, from the datasheet: the most that a library's product can reach."""
LAUNCH, MEMSET = 2.5e-6, 1.5e-6
"""Seconds from the end of one kernel, or memset, of a replayed graph to the end of an empty next one. Assumptions."""

RATES = {"instructions": 4, "integer": 2, "multiply": 2, "double": 2, "special": 0.5, "load_store": 1}
"""Instructions of warps a clock and multiprocessor: the schedulers', and each unit's."""
NAMES = {
    "instructions": "issue",
    "integer": "integer unit",
    "multiply": "integer multiply",
    "double": "float64",
    "special": "special functions",
    "load_store": "load and store",
}

WARPS, BLOCKS, REGISTERS, SHARED_BYTES, SHARED_OF_SYSTEM = 64, 32, 65536, 228 << 10, 1 << 10


def blocks_at_once(threads: int, registers: int, shared_bytes: int) -> int:
    """Return how many blocks a multiprocessor holds at once.

    Args:
        threads: Of a block.
        registers: Of a thread. They are given out to warps in portions of 256.
        shared_bytes: Of a block. The system keeps another KiB for each.
    """
    warps = math.ceil(threads / 32)
    of_warp = math.ceil(registers * 32 / 256) * 256
    of_block = math.ceil((shared_bytes + SHARED_OF_SYSTEM) / 128) * 128
    return min(BLOCKS, WARPS // warps, REGISTERS // of_warp // warps, SHARED_BYTES // of_block)


@dataclass(frozen=True)
class Time:
    """Microseconds of one launch: the floor of any launch, and what each limit adds alone."""

    launch: float
    limits: dict[str, float]

    @property
    def limit(self) -> str:
        """The limit that takes longest."""
        return max(self.limits, key=lambda name: self.limits[name])

    @property
    def total(self) -> float:
        return self.launch + self.limits[self.limit]


def time_of_launch(blocks: int, warps: int, executed: Mapping[str, float], sectors: float, from_dram: float) -> Time:
    """Return the time of a kernel, if whatever limits it most hides all the rest. Latencies are left out.

    Args:
        blocks: Of the grid. The multiprocessor with the most of them is the last to finish.
        warps: Of a block. A warp issues one instruction a clock at most.
        executed: Instructions of warps, all and of each unit.
        sectors: Sectors of 32 bytes read and written.
        from_dram: Bytes that are not in L2 already, or leave it.
    """
    at_most = math.ceil(blocks / MULTIPROCESSORS)  # blocks of a multiprocessor
    most = at_most / blocks  # part of the work
    rates = RATES | {"instructions": min(RATES["instructions"], warps * at_most)}
    limits = {NAMES[unit]: executed.get(unit, 0) * most / rate / CLOCK for unit, rate in rates.items()}
    limits["DRAM"] = from_dram / DRAM
    limits["L2"] = 32 * sectors / L2
    limits["L2 port"] = 32 * sectors * most / L2_PORT / CLOCK
    return Time(1e6 * LAUNCH, {name: 1e6 * seconds for name, seconds in limits.items()})


def time_of_library(num_bytes: float, flops: float, *, in_l2: bool) -> Time:
    """Return the time of one of PyTorch's own kernels, from its tensors' bytes and its operations."""
    limits = {"library's product": flops / PRODUCT, "L2" if in_l2 else "DRAM": num_bytes / (L2 if in_l2 else DRAM)}
    return Time(1e6 * LAUNCH, {name: 1e6 * seconds for name, seconds in limits.items()})
