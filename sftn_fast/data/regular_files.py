"""Opening untrusted files: only regular files of a bounded size, and nothing that could block forever."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

MAX_BYTES = 512 * 2**20  # of an image file


def open_regular(path: str | Path, limit: int | None = None) -> BinaryIO:
    """Open a regular file, or a link to one, for reading.

    A folder, pipe, socket or device is refused without opening it.

    Args:
        path: The file.
        limit: Largest size in bytes; None for any.

    Raises:
        OSError: It can't be opened, is not a regular file, or has more than ``limit`` bytes.
    """
    path = Path(path)
    _require_regular(path.stat())  # first, because opening a device may change its state
    file = open(path, "rb", opener=_open_without_blocking)  # noqa: SIM115
    try:
        found = os.fstat(file.fileno())
        _require_regular(found)
        if limit is not None and found.st_size > limit:
            raise OSError(f"{found.st_size:,} bytes, more than the {limit:,} that are read")
    except OSError:
        file.close()
        raise
    return file


def _open_without_blocking(path: str, flags: int) -> int:
    # Opening must not block even if a pipe has replaced the file since it was checked.
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _require_regular(found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise OSError(f"no regular file but a {_kind(found.st_mode)}")


def _kind(mode: int) -> str:
    kinds = {stat.S_ISDIR: "folder", stat.S_ISFIFO: "pipe", stat.S_ISSOCK: "socket"}
    return next((name for is_kind, name in kinds.items() if is_kind(mode)), "device")
