"""Atomic writing of files: a file has its old content or all of the new, and is never written through a link.

A link in a run's folder may lead to a file that belongs to somebody else. Writing therefore replaces the link itself,
and opening a file in place fails if it is a link.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import operator
import os
import re
import shutil
import stat
import sys
from contextlib import suppress
from pathlib import Path
from typing import IO

LEFTOVER = re.compile(r"\..+\.\d+\.tmp|\.tmp_.+", re.DOTALL)
"""Names of temporary files and folders that a killed process has not removed."""
FULL = tuple(getattr(errno, name) for name in ("ENOSPC", "EDQUOT", "EFBIG") if hasattr(errno, name))
CURRENT_FOLDER, EXCHANGE = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of Linux


def open_flags(*names: str) -> int:
    """Return the flags of ``os.open`` with these names. Flags that this system lacks are 0."""
    return functools.reduce(operator.or_, (getattr(os, name, 0) for name in names))


# O_NONBLOCK: a FIFO in place of the file does not block.
NO_LINK = open_flags("O_NOFOLLOW", "O_CLOEXEC", "O_NONBLOCK", "O_BINARY")


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write a file such that ``path`` holds the old content or all of the new, even after a power cut.

    An empty folder in its place is removed.

    Raises:
        OSError: The file can't be written. It names ``path``. The old content stays, and no temporary file is left.
    """
    temporary = temporary_name(path)
    try:
        write_synced(temporary, content.encode() if isinstance(content, str) else content)
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        temporary.replace(path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        with suppress(OSError):  # it would hide the first error
            temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def temporary_name(path: Path) -> Path:
    """Return the temporary file, beside ``path``, that becomes ``path`` when it is complete."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def write_synced(path: Path, content: bytes | memoryview) -> None:
    """Write a new file and wait until its content is on the disk. An old file of this name is removed first.

    Raises:
        OSError: The file can't be written.
    """
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | NO_LINK, 0o666)
    try:
        write_all(descriptor, content)
        os.fsync(descriptor)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error  # the kernel's error has no file name
    finally:
        os.close(descriptor)


def write_all(descriptor: int, content: bytes | memoryview) -> None:
    """Write all of ``content``, in several calls if necessary.

    Raises:
        OSError: The disk is full. A part of the content may be written.
    """
    rest = memoryview(content)
    while rest:
        written = os.write(descriptor, rest)
        if not written:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        rest = rest[written:]


def describe(error: OSError) -> str:
    """Return the message for ``error``: the file, the reason, and what to do about a full disk."""
    where = f"{error.filename}: " if error.filename else ""
    what = f"{where}{error.strerror or error}"
    return f"{what}; free some space, then run the same command again" if error.errno in FULL else what


def sync_folder(folder: Path) -> None:
    """Wait until the names in ``folder`` are on the disk, for example after a rename."""
    if sys.platform == "win32":  # a folder can't be opened there, and a rename needs no sync
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(folder)) from error
    finally:
        os.close(descriptor)


def open_in_place(path: Path) -> int:
    """Open a file for reading and writing in place, and return its descriptor. A missing file is created.

    Raises:
        OSError: The file can't be opened, or is a link or not a regular file.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | NO_LINK, 0o666)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EMLINK):
            raise OSError(error.errno, f"{path.name} is a link: remove it", str(path)) from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, f"{path.name} is not a regular file: remove it", str(path))
    return descriptor


def open_lock(path: Path) -> IO[str]:
    """Open a file that serves as a lock. Its content does not matter.

    Raises:
        OSError: The file can't be opened, or is a link or not a regular file.
    """
    return os.fdopen(open_in_place(path), "r+", encoding="utf-8", errors="replace")


def replace_files(folder: Path, contents: dict[str, bytes]) -> None:
    """Write several files to ``folder`` at once, so that no reader sees some new and some old ones.

    The files are written to a temporary folder, which then replaces the old one. Other files of the old folder are
    moved to the new one.

    Raises:
        OSError: The files can't be written. The old ones stay.
    """
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    remove(temporary)
    try:
        temporary.mkdir()
        for name, content in contents.items():
            write_synced(temporary / name, content)
        others = [path for path in folder.iterdir() if not _is_own(path, contents)] if folder.is_dir() else []
        for other in others:
            _take_along(other, temporary / other.name)
        sync_folder(temporary)
        _exchange(temporary, folder)
        sync_folder(folder.parent)
    finally:
        with suppress(OSError):  # it would hide the first error
            remove(temporary)


def remove(path: Path) -> None:
    """Remove a file, a link, or a folder with its content. Links are not followed. A missing path is no error."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _is_own(path: Path, contents: dict[str, bytes]) -> bool:
    return path.name in contents or LEFTOVER.fullmatch(path.name) is not None


def _take_along(path: Path, target: Path) -> None:
    if path.is_symlink() or not path.is_dir():
        with suppress(OSError, NotImplementedError):  # not every system can link a link itself
            os.link(path, target, follow_symlinks=False)
            return
        shutil.copy2(path, target, follow_symlinks=False)  # this disk has no hard links
    else:
        shutil.copytree(path, target, symlinks=True)


def _exchange(new: Path, old: Path) -> None:
    """Exchange the names of ``new`` and ``old``, atomically on Linux. If there is no old folder, rename the new one."""
    if old.is_dir() and not old.is_symlink():
        rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if sys.platform == "linux" else None
        if rename is not None and not rename(CURRENT_FOLDER, bytes(new), CURRENT_FOLDER, bytes(old), EXCHANGE):
            return
        # Between these two renames no folder has the old name. A reader never sees a mixture.
        aside = new.with_name(f".old{new.name}")
        remove(aside)
        old.rename(aside)
        new.rename(old)
        remove(aside)
    else:
        old.unlink(missing_ok=True)
        new.rename(old)
