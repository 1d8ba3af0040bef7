"""Locks on open files. The system releases them when the process ends, however it ends."""

from __future__ import annotations

import errno
import importlib
import os
from types import ModuleType


def _import(name: str) -> ModuleType | None:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


fcntl, msvcrt = _import("fcntl"), _import("msvcrt")  # Unix has the former, Windows the latter
REGION = 2**30
"""Offset of the byte that is locked on Windows. It is past the content, which others may then still read there."""


def try_lock(descriptor: int, *, shared: bool = False) -> None:
    """Lock an open file without waiting.

    Args:
        descriptor: the file's, open for writing unless ``shared``.
        shared: allow other shared locks. On Windows every lock is exclusive.

    Raises:
        BlockingIOError: another process, or another descriptor, holds the lock.
        OSError: the file can't be locked, because the file system or the Python build has no locks.
    """
    if fcntl is not None:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    elif msvcrt is not None:
        position = os.lseek(descriptor, 0, os.SEEK_CUR)
        os.lseek(descriptor, REGION, os.SEEK_SET)
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except PermissionError as error:
            raise BlockingIOError(error.errno, error.strerror) from error
        finally:
            os.lseek(descriptor, position, os.SEEK_SET)
    else:
        raise OSError(errno.ENOSYS, "this Python has no file locks")
