"""The CUDA sources as nvcc sees them, without a GPU: they compile, their registers suffice, nothing in them waits."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest
import torch
from simt import test_memory
from simt.build import kernel_name, load

ROOT = Path(__file__).resolve().parents[1]
CUDA = ROOT / "csrc" / "cuda"
SOURCES = sorted(CUDA.glob("*.cu"))
FILES = sorted([*CUDA.glob("*.cu"), *CUDA.glob("*.cuh")])
HEADERS = sorted([*CUDA.glob("*.cuh"), *CUDA.parent.glob("*.h")])
CACHE = ROOT / "build" / "registers"
FLAGS = [
    "-std=c++17",
    "-O3",
    "-arch=sm_90",
    "-DUSE_CUDA",
    "-DTORCH_TARGET_VERSION=0x020a000000000000",
    "-Xptxas",
    "-v",
]
SMALLEST = min(SOURCES, key=lambda path: path.stat().st_size)
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


def ptxas_log(nvcc: str, source: Path, folder: Path) -> str:
    """Compile a source and return the assembler's log. The log is kept under build/ for these very inputs."""
    version = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    texts = [path.read_text() for path in (source, *HEADERS)]
    # The emulator's build compiles every host half, with g++ as nvcc does; one of them is compiled by nvcc itself.
    flags = [*FLAGS, "-c" if source == SMALLEST else "-cubin"]
    key = hashlib.sha256("\0".join([version, torch.__version__, *flags, *texts]).encode()).hexdigest()[:16]
    kept = CACHE / f"{source.stem}-{key}.txt"
    if kept.exists():
        return kept.read_text()
    include = Path(torch.__file__).parent / "include"
    command = [nvcc, *flags, f"-isystem={include}", str(source), "-o", str(folder / "x.o")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    log = done.stdout + done.stderr
    assert done.returncode == 0, log[-4000:]
    CACHE.mkdir(parents=True, exist_ok=True)
    partial = kept.with_suffix(f".{os.getpid()}")
    partial.write_text(log)
    partial.replace(kept)
    return log


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


@pytest.mark.slow
@pytest.mark.parametrize("source", SOURCES, **ids)
def test_registers_suffice(source: Path, tmp_path: Path, emulated_ops: object) -> None:
    """Compile for one architecture; no kernel spills, keeps an array in local memory, or is refused at its launch."""
    home = os.environ.get("CUDA_HOME")
    nvcc = shutil.which("nvcc", path=f"{home}/bin") if home else shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("no nvcc on PATH or in CUDA_HOME")
    log = ptxas_log(nvcc, source, tmp_path)
    compiled = kernels(log)
    assert len(compiled) == log.count("Compiling entry function") > 0
    wasteful = [
        kernel for kernel in compiled if (kernel["stack"], kernel["stores"], kernel["loads"]) != ("0", "0", "0")
    ]
    assert not wasteful
    needed = dict(zip(demangled([kernel["name"] for kernel in compiled]), compiled, strict=True))
    launched = {name: threads for name, threads in largest_blocks().items() if name in needed}
    assert launched, "no kernel of this file is launched"
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
