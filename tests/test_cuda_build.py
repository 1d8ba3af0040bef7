"""The CUDA sources as nvcc sees them, no GPU needed: they compile, their registers suffice, nothing in them waits."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
CUDA = ROOT / "csrc" / "cuda"
SOURCES = sorted(CUDA.glob("*.cu"))
FILES = sorted([*CUDA.glob("*.cu"), *CUDA.glob("*.cuh")])
ids = {"ids": lambda path: path.name}

FORBIDDEN = {
    "waits for the device": r"Synchronize|cudaMemcpy\b|cudaMalloc\b|cudaFree\b|\.item\b|cudaEventQuery|cudaStreamQuery",
    "depends on an architecture": r"\basm\b|cooperative_groups|\bcub::|<cub/|<thrust/|__CUDA_ARCH__",
    "leaves the stable ABI": r"#include <(ATen|c10|torch/(extension|torch|all|library)\.h|torch/csrc/api)",
    "compiles in one of the two only": r"SIMT_EMULATOR|__CUDACC__",
    "could not be poisoned by the emulator": r"__shared__",
}
# simt.cuh is where the two compilers differ.
ALLOWED = {"simt.cuh": {"compiles in one of the two only", "could not be poisoned by the emulator"}}


def code_of(path: Path) -> str:
    return re.sub(r"//[^\n]*", "", path.read_text())


def kernels(ptxas: str) -> list[dict[str, str]]:
    """What ``-Xptxas -v`` says of each kernel: its name, stack frame, spills and registers."""
    pattern = (
        r"Compiling entry function '(?P<name>\w+)'.*?(?P<stack>\d+) bytes stack frame, "
        r"(?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads.*?Used (?P<registers>\d+) registers"
    )
    return [match.groupdict() for match in re.finditer(pattern, ptxas, re.DOTALL)]


@pytest.mark.slow
@pytest.mark.parametrize("source", SOURCES, **ids)
def test_registers_suffice(source: Path, tmp_path: Path) -> None:
    """Compile for one architecture, device and host; no kernel spills or keeps an array in local memory."""
    home = os.environ.get("CUDA_HOME")
    nvcc = shutil.which("nvcc", path=f"{home}/bin") if home else shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("no nvcc on PATH or in CUDA_HOME")
    include = Path(torch.__file__).parent / "include"
    flags = ["-std=c++17", "-O3", "-arch=sm_90", "-DUSE_CUDA", "-DTORCH_TARGET_VERSION=0x020a000000000000"]
    command = [nvcc, *flags, "-Xptxas", "-v", f"-isystem={include}", "-c", str(source), "-o", str(tmp_path / "x.o")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    log = done.stdout + done.stderr
    assert done.returncode == 0, log[-4000:]
    compiled = kernels(log)
    assert len(compiled) == log.count("Compiling entry function") > 0
    wasteful = [
        kernel for kernel in compiled if (kernel["stack"], kernel["stores"], kernel["loads"]) != ("0", "0", "0")
    ]
    assert not wasteful


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
    """The order in which atomics reach a float changes its last bits; counters and bitmaps have none to lose."""
    allowed = {
        "atomicAdd(arrivals, 1u)",
        "atomicAdd(counts + rank - first, 1u)",
        "atomicOr(word, mask)",
        "atomicAnd(word, ~mask)",
    }
    assert set(re.findall(r"atomic\w+\([^;]*?\)", code_of(path))) <= allowed
