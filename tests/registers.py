"""The assembler's logs of the CUDA sources: kept under build/ for these very inputs, and made once."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CUDA = ROOT / "csrc" / "cuda"
SOURCES = sorted(CUDA.glob("*.cu"))
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


def find_nvcc() -> str | None:
    """Return nvcc of CUDA_HOME, or of PATH without that variable. None if it is not there."""
    home = os.environ.get("CUDA_HOME")
    return shutil.which("nvcc", path=f"{home}/bin") if home else shutil.which("nvcc")


@cache
def _release(nvcc: str) -> str:
    return subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout


@contextmanager
def _lock(source: Path) -> Iterator[None]:
    """Let one process compile a source at a time."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / f".{source.stem}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def ptxas_log(nvcc: str, source: Path) -> str:
    """Return the log of ``-Xptxas -v`` for a source. Compile it unless the log is kept.

    Raises:
        RuntimeError: the source does not compile; the message holds the end of the log.

    """
    texts = [path.read_text() for path in (source, *HEADERS)]
    # The emulator's build compiles every host half, with g++ as nvcc does; one of them is compiled by nvcc itself.
    flags = [*FLAGS, "-c" if source == SMALLEST else "-cubin"]
    key = hashlib.sha256("\0".join([_release(nvcc), version("torch"), *flags, *texts]).encode()).hexdigest()[:16]
    kept = CACHE / f"{source.stem}-{key}.txt"
    with _lock(source), tempfile.TemporaryDirectory() as folder:
        if kept.exists():
            return kept.read_text()
        torch = find_spec("torch")
        assert torch is not None and torch.submodule_search_locations
        include = Path(torch.submodule_search_locations[0]) / "include"
        command = [nvcc, *flags, f"-isystem={include}", str(source), "-o", f"{folder}/x.o"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        log = done.stdout + done.stderr
        if done.returncode:
            raise RuntimeError(f"nvcc failed on {source.name}:\n{log[-4000:]}")
        partial = kept.with_suffix(".partial")
        partial.write_text(log)
        partial.replace(kept)
        return log


def compile_all() -> None:
    """Make the log of every source, the largest first. Do nothing without nvcc."""
    nvcc = find_nvcc()
    for source in sorted(SOURCES, key=lambda path: -path.stat().st_size) if nvcc else ():
        ptxas_log(nvcc, source)  # type: ignore[arg-type]
