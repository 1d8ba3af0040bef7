"""Real faults for the engine's tests, and processes to run them in."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import resource
from collections.abc import Iterator
from pathlib import Path

# Children fork from a server that has imported torch. A fresh interpreter for each would take seconds.
processes = multiprocessing.get_context("forkserver")
PRELOADED = ["unsynced", "torch", "sftn_fast.engine", "sftn_fast.distillers.distiller", "torch._dynamo"]
processes.set_forkserver_preload(PRELOADED)


@contextlib.contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Make writes past ``size`` bytes of any file fail inside, as on a full disk (EFBIG for ENOSPC)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def mount_disk(folder: Path, kilobytes: int) -> None:
    """Mount a small disk, in memory, on ``folder``, visible to this process only, which must have one thread.

    Raises:
        OSError: the machine does not allow it.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    new_mounts, new_user, private = 0x20000, 0x10000000, 0x4000 | 0x40000
    for call, *arguments in (
        (libc.unshare, new_mounts if os.geteuid() == 0 else new_mounts | new_user),
        (libc.mount, b"none", b"/", None, private, None),
        (libc.mount, b"none", bytes(folder), b"tmpfs", 0, f"size={kilobytes}k".encode()),
    ):
        if call(*arguments) != 0:
            raise OSError(ctypes.get_errno(), f"{call.__name__}: {os.strerror(ctypes.get_errno())}")


def flip_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
