"""The assembler's logs of the CUDA sources: kept under build/ for these very inputs, and made once.

nvcc takes four seconds to parse what every source includes. So several sources are compiled as one unit.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
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
UNITS = {f"unit{i}": SOURCES[i::3] for i in range(3)}
"""Sources that are compiled together, by the name of the unit."""
WITH_HOST = "unit0"
"""The unit whose host half nvcc compiles too. The emulator's build compiles all of them, with g++ as nvcc does."""
CONSTANT = re.compile(r"^constexpr \w+ (k\w+) =", flags=re.MULTILINE)


def find_nvcc() -> str | None:
    """Return nvcc of CUDA_HOME, or of PATH without that variable. None if it is not there."""
    home = os.environ.get("CUDA_HOME")
    return shutil.which("nvcc", path=f"{home}/bin") if home else shutil.which("nvcc")


@cache
def _release(nvcc: str) -> str:
    return subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout


@contextmanager
def _lock(unit: str) -> Iterator[None]:
    """Let one process compile a unit at a time."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / f".{unit}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def text_of(sources: Sequence[Path]) -> str:
    """Return a source that includes others. Each keeps constants of its own, though others have theirs by that name."""
    lines = []
    for source in sources:
        constants = CONSTANT.findall(source.read_text())
        lines += [f"#define {name} {name}_{source.stem}" for name in constants]
        lines += [f'#include "{source}"', *(f"#undef {name}" for name in constants)]
    return "\n".join([*lines, ""])


def ptxas_log(nvcc: str, unit: str) -> str:
    """Return the log of ``-Xptxas -v`` for a unit. Compile it unless the log is kept.

    Raises:
        RuntimeError: a source does not compile; the message holds the end of the log.

    """
    texts = [path.read_text() for path in (*UNITS[unit], *HEADERS)]
    flags = [*FLAGS, "-c" if unit == WITH_HOST else "-cubin"]
    key = hashlib.sha256("\0".join([_release(nvcc), version("torch"), *flags, *texts]).encode()).hexdigest()[:16]
    kept = CACHE / f"{unit}-{key}.txt"
    with _lock(unit), tempfile.TemporaryDirectory() as folder:
        if kept.exists():
            return kept.read_text()
        torch = find_spec("torch")
        assert torch is not None and torch.submodule_search_locations
        include = Path(torch.submodule_search_locations[0]) / "include"
        source = Path(folder) / f"{unit}.cu"
        source.write_text(text_of(UNITS[unit]))
        command = [nvcc, *flags, f"-isystem={include}", str(source), "-o", f"{folder}/x.o"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        log = done.stdout + done.stderr
        if done.returncode:
            raise RuntimeError(f"nvcc failed:\n{log[-4000:]}")
        partial = kept.with_suffix(".partial")
        partial.write_text(log)
        partial.replace(kept)
        return log


def compile_all() -> None:
    """Make the log of every unit. Do nothing without nvcc."""
    nvcc = find_nvcc()
    for unit in UNITS if nvcc else ():
        ptxas_log(nvcc, unit)  # type: ignore[arg-type]
