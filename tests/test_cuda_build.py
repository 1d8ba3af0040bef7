"""The CUDA sources as nvcc sees them, without a GPU: they compile, their registers suffice, nothing in them waits."""

from __future__ import annotations

import re
import subprocess
from functools import cache
from pathlib import Path

import compile_ahead
import pytest
import torch
from registers import CUDA, SOURCES, UNITS, find_nvcc, ptxas_log
from simt import test_memory
from simt.build import kernel_name, load

FILES = sorted([*CUDA.glob("*.cu"), *CUDA.glob("*.cuh")])
ids = {"ids": lambda path: path.name}
REGISTERS = 65536
"""Of a multiprocessor: a launch is refused if its block needs more."""

FORBIDDEN = {
    "waits for the device": r"Synchronize|cudaMemcpy\b|cudaMalloc\b|cudaFree\b|\.item\b|cudaEventQuery|cudaStreamQuery",
    "depends on an architecture": r"\basm\b|cooperative_groups|\bcub::|<cub/|<thrust/|__CUDA_ARCH__",
    "leaves the stable ABI": r"#include <(ATen|c10|torch/(extension|torch|all|library)\.h|torch/csrc/api)",
    "compiles in one of the two only": r"SIMT_EMULATOR|__CUDACC__",
    "could not be poisoned by the emulator": r"__shared__",
}
# simt.cuh holds the differences between the two compilers.
ALLOWED = {"simt.cuh": {"compiles in one of the two only", "could not be poisoned by the emulator"}}


def code_of(path: Path) -> str:
    return re.sub(r"//[^\n]*", "", path.read_text())


def kernels(ptxas: str) -> list[dict[str, str]]:
    """Return the name, stack frame, spills and registers of each kernel in the output of ``-Xptxas -v``."""
    pattern = (
        r"Compiling entry function '(?P<name>\w+)'.*?(?P<stack>\d+) bytes stack frame, "
        r"(?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads.*?Used (?P<registers>\d+) registers"
    )
    return [match.groupdict() for match in re.finditer(pattern, ptxas, re.DOTALL)]


@cache
def largest_blocks() -> dict[str, int]:
    """Return the largest block of each kernel, by its name, in the calls of test_memory."""
    emulator = load()
    threads: dict[str, int] = {}
    names = emulator.kernel_names()
    for call in test_memory.CALLS:
        for dtype in (torch.float32, torch.bfloat16):
            for launch in test_memory.counted_launches(emulator, torch.ops.sftn_fast_emulated, call, dtype, False):
                name = names[launch["kernel"]]
                threads[name] = max(threads.get(name, 0), launch["threads"])
    emulator.reset()
    return threads


def demangled(names: list[str]) -> list[str]:
    done = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True)
    return [kernel_name(line) for line in done.stdout.splitlines()]


def kernels_of(source: Path) -> set[str]:
    """Return the names of kernels in a source and in the headers of its name."""
    texts = [path.read_text() for path in (source, *CUDA.glob(f"{source.stem}*.cuh"))]
    return set(re.findall(r"__global__ void[^;{]*?\b(\w+_kernel)\(", "".join(texts)))


def base_name(kernel: str) -> str:
    """Return a kernel's name without namespaces and template arguments."""
    return kernel.partition("<")[0].rpartition("::")[2]


def test_every_source_is_in_a_unit() -> None:
    assert sorted(source for unit in UNITS.values() for source in unit) == SOURCES
    assert all(kernels_of(source) for source in SOURCES)


@pytest.mark.slow
@pytest.mark.compiles(compile_ahead.REGISTERS)
@pytest.mark.parametrize("unit", UNITS)
def test_registers_suffice(unit: str, emulated_ops: object) -> None:
    """Compile for one architecture; no kernel spills, keeps an array in local memory, or is refused at its launch."""
    nvcc = find_nvcc()
    if nvcc is None:
        pytest.skip("no nvcc on PATH or in CUDA_HOME")
    log = ptxas_log(nvcc, unit)
    compiled = kernels(log)
    assert len(compiled) == log.count("Compiling entry function") > 0
    wasteful = [
        kernel for kernel in compiled if (kernel["stack"], kernel["stores"], kernel["loads"]) != ("0", "0", "0")
    ]
    assert not wasteful
    needed = dict(zip(demangled([kernel["name"] for kernel in compiled]), compiled, strict=True))
    launched = {name: threads for name, threads in largest_blocks().items() if name in needed}
    for source in UNITS[unit]:
        assert kernels_of(source).intersection(map(base_name, launched)), f"no kernel of {source.name} is launched"
    for name, threads in launched.items():
        assert int(needed[name]["registers"]) * threads <= REGISTERS, f"{name}: {needed[name]}, {threads} threads"


def test_spills_are_read() -> None:
    log = (
        "ptxas info    : Compiling entry function '_Z1kPf' for 'sm_90'\n"
        "ptxas info    : Function properties for _Z1kPf\n"
        "    32 bytes stack frame, 24 bytes spill stores, 28 bytes spill loads\n"
        "ptxas info    : Used 64 registers, used 1 barriers, 513 bytes smem\n"
    )
    assert kernels(log) == [{"name": "_Z1kPf", "stack": "32", "stores": "24", "loads": "28", "registers": "64"}]


@pytest.mark.parametrize("path", FILES, **ids)
@pytest.mark.parametrize("why", FORBIDDEN)
def test_nothing_forbidden(path: Path, why: str) -> None:
    if why not in ALLOWED.get(path.name, set()):
        assert not re.findall(FORBIDDEN[why], code_of(path)), f"{path.name} {why}"


@pytest.mark.parametrize("path", FILES, **ids)
def test_atomics_only_count(path: Path) -> None:
    """Atomics only count or mark: on a float, their order would change the last bits."""
    allowed = {
        "atomicInc(arrivals, blocks - 1)",
        "atomicAdd(counts + rank - first, 1u)",
        "atomicAdd(counts + pair, one)",
        "atomicOr(word, mask)",
        "atomicAnd(word, ~mask)",
    }
    assert set(re.findall(r"atomic\w+\([^;]*?\)", code_of(path))) <= allowed
