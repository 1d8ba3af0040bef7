"""On-demand builds for tests/simt: the CUDA kernels on the emulator and the emulator's native test program."""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
CMAKE_DIR = ROOT / "build" / "cmake"
LIBRARIES = {"plain": ("sftn_emulated", "simt"), "asan": ("sftn_emulated_asan", "simt_asan")}


def find_tool(name: str) -> str:
    """Find a program beside the running Python, else on PATH. RuntimeError if there is none."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise RuntimeError(f"{name} is needed to build the emulated kernels and was not found; pip install {name}")
    return found


def find_compiler() -> str:
    """Return the C++ compiler of the configured build."""
    line = next(
        x for x in (CMAKE_DIR / "CMakeCache.txt").read_text().splitlines() if x.startswith("CMAKE_CXX_COMPILER:")
    )
    return line.split("=", 1)[1]


@contextmanager
def build_lock() -> Iterator[None]:
    """Allow one build at a time, for any number of test processes."""
    CMAKE_DIR.mkdir(parents=True, exist_ok=True)
    with (CMAKE_DIR / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def run(*command: str) -> None:
    """Run a command silently. RuntimeError with its output if it fails."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout[-8000:]}")


def configured() -> bool:
    """Return whether the build folder is configured for the running Python."""
    cache_file = CMAKE_DIR / "CMakeCache.txt"
    if not (cache_file.exists() and (CMAKE_DIR / "build.ninja").exists()):
        return False
    return f"={sys.executable}\n" in cache_file.read_text()


@cache
def build_target(target: str) -> None:
    """Configure if needed and build one CMake target. Up-to-date parts are not rebuilt."""
    with build_lock():
        cmake = find_tool("cmake")
        if not configured():
            python = f"-DPython_EXECUTABLE={sys.executable}"
            ninja = f"-DCMAKE_MAKE_PROGRAM={find_tool('ninja')}"
            run(cmake, "--fresh", "-S", str(ROOT), "-B", str(CMAKE_DIR), "-G", "Ninja", python, ninja)
        run(cmake, "--build", str(CMAKE_DIR), "--target", target)


def ensure_built(variant: str = "plain") -> Path:
    """Return the folder of the emulated kernels' library. Build it if missing or out of date.

    Args:
        variant: "plain", or "asan" for AddressSanitizer and UBSan, whose runtime must be preloaded to load it.

    Raises:
        KeyError: unknown variant.
        RuntimeError: a tool is missing or the build failed; the message holds its output.

    """
    target, folder = LIBRARIES[variant]
    build_target(target)
    return ROOT / "build" / folder


def kernel_name(demangled: str) -> str:
    """Return a demangled function's name with template arguments, without its own ones: alike by g++ and nvcc."""
    name = re.sub(r"\(anonymous namespace\)::|_GLOBAL__N__\w+::", "", demangled)
    return re.sub(r"^void |\(.*", "", name)


class Emulator:
    """The controls of the emulated device. Once loaded, ``torch.ops.sftn_fast_emulated`` exists."""

    def __init__(self, folder: Path) -> None:
        import torch

        library = folder / "sftn_emulated.so"
        torch.ops.load_library(library)
        self._library = ctypes.CDLL(str(library))
        for count in (self._library.simt_launches, self._library.simt_blocks, self._library.simt_memsets):
            count.restype = ctypes.c_int64

    def set_seed(self, seed: int) -> None:
        """Run blocks, warps and lanes in order (0), or shuffle them (any other seed)."""
        self._library.simt_set_seed(ctypes.c_uint(seed))

    def set_multiprocessors(self, count: int) -> None:
        """Make the device claim to have ``count`` multiprocessors."""
        self._library.simt_set_multiprocessors(ctypes.c_int(count))

    def sample_blocks(self, count: int) -> None:
        """Run ``count`` blocks of each larger grid, or all (0). Results are wrong then, and counts are of a sample."""
        self._library.simt_set_sample(ctypes.c_uint(count))

    def launches(self) -> int:
        """Return the number of kernel launches since :meth:`reset`."""
        return self._library.simt_launches()

    def blocks(self) -> int:
        """Return the number of blocks run since :meth:`reset`."""
        return self._library.simt_blocks()

    def memsets(self) -> int:
        """Return how often memory was set by an operation of its own since :meth:`reset`."""
        return self._library.simt_memsets()

    def set_stream(self, stream: int, capture: int = 0) -> None:
        """Make the current stream claim to be this one, recorded by a capture, or by none (0)."""
        self._library.simt_set_stream(ctypes.c_uint64(stream), ctypes.c_uint64(capture))

    def count_accesses(self, on: bool) -> None:
        """Count what kernels read and write, from now on or no longer. Counting is slow."""
        self._library.simt_count_accesses(ctypes.c_int(on))

    def counted_launches(self) -> list[dict[str, Any]]:
        """Return each counted launch: kernel, grid, and the accesses of each instruction to global memory, "sites".

        A site has its address, ``write``, and sums over warps: requests, bytes, those of all lanes, the sectors of 32
        bytes that were touched, and the fewest that would have held the bytes. A launch has ``blocks``, of which
        ``blocks_run`` were run and counted, ``threads`` of a block, ``dynamic_bytes`` of shared memory, the bytes
        that all lanes read and wrote there, the ``shuffles`` and ``barriers`` of warps, and the ``exponentials`` and
        ``roots`` of lanes in float32.
        """
        as_text = self._library.simt_counted_launches  # not in the sanitizers' variant
        as_text.restype = ctypes.c_char_p
        return json.loads(as_text())

    def kernel_names(self) -> dict[int, str]:
        """Return the name of each function of the library, with template arguments, by its address."""
        command = ["nm", "-C", "--defined-only", self._library._name]
        listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        fields = (line.split(" ", 2) for line in listed.splitlines())
        return {int(address, 16): kernel_name(name) for address, _, name in fields}

    def reset(self) -> None:
        """Restore the usual schedule and size, and count from zero."""
        self._library.simt_reset()


@cache
def load(variant: str = "plain") -> Emulator:
    """Return the emulator's controls."""
    folder = os.environ.get("SFTN_EMULATED_DIR") if variant == "plain" else None
    return Emulator(Path(folder).resolve() if folder else ensure_built(variant))
