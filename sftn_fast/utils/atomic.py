"""Files that are either there as a whole or not at all, and that are never written through a link.

A link in a folder of ours may lead to a file of somebody else's. What is replaced is therefore the link itself, and
what must be opened in place is refused where it is a link.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import shutil
import stat
from contextlib import suppress
from pathlib import Path
from typing import IO

LEFTOVER = re.compile(r"\..+\.\d+\.tmp|\.tmp_.+", re.DOTALL)
"""Names of temporary files and folders, as a killed process leaves them."""
NO_LINK = 0
"""Flags to open a file that must not be a link, where the system has them. The last one keeps a FIFO from blocking."""
for _flag in ("O_NOFOLLOW", "O_CLOEXEC", "O_NONBLOCK"):
    NO_LINK |= getattr(os, _flag, 0)
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
CURRENT_FOLDER, EXCHANGE = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of Linux


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write a file so that, also after a power cut, ``path`` holds the old content or all of the new.

    An empty folder in its place gives way.

    Raises:
        OSError: it can't be written; the old content stays, and no temporary file.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write_synced(temporary, content.encode() if isinstance(content, str) else content)
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        temporary.replace(path)
    finally:
        with suppress(OSError):  # which would hide the first
            temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def write_synced(path: Path, content: bytes | memoryview) -> None:
    """Write a new file and wait until the disk has its content. What bore its name before is removed, not written to.

    Raises:
        OSError: it can't be written.
    """
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | NO_LINK, 0o666)
    try:
        write_all(descriptor, content)
        os.fsync(descriptor)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error  # the kernel's own names no file
    finally:
        os.close(descriptor)


def write_all(descriptor: int, content: bytes | memoryview) -> None:
    """Write all of ``content``, however many calls it takes.

    Raises:
        OSError: there is no room; a part of it may be written.
    """
    rest = memoryview(content)
    while rest:
        written = os.write(descriptor, rest)
        if not written:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        rest = rest[written:]


def describe(error: OSError) -> str:
    """Return in one line what could not be done to which file."""
    where = f"{error.filename}: " if error.filename else ""
    what = f"{where}{error.strerror or error}"
    return f"{what}; make room, and give the same command again" if error.errno in FULL else what


def sync_folder(folder: Path) -> None:
    """Wait until the disk has the names in ``folder``, as they are after a rename."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(folder)) from error
    finally:
        os.close(descriptor)


def open_in_place(path: Path) -> int:
    """Open a file to read and write it where it is, made if need be; returns the descriptor.

    Raises:
        OSError: it can't be opened, or it is a link or no regular file.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | NO_LINK, 0o666)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EMLINK):
            raise OSError(error.errno, f"{path.name} is a link: remove it", str(path)) from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, f"{path.name} is no regular file: remove it", str(path))
    return descriptor


def open_lock(path: Path) -> IO[str]:
    """Open a file that is there to be locked; its content is of no account.

    Raises:
        OSError: it can't be opened, or it is a link or no regular file.
    """
    return os.fdopen(open_in_place(path), "r+", errors="replace")


def replace_files(folder: Path, contents: dict[str, bytes]) -> None:
    """Give ``folder`` files that belong together, so that nobody ever sees some new and some old ones.

    They are written into another folder, which then takes the place of the old one. What else the old one holds is
    moved along.

    Raises:
        OSError: they can't be written; the old ones stay.
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
        with suppress(OSError):  # which would hide the first
            remove(temporary)


def remove(path: Path) -> None:
    """Remove a file, a link or a folder with all that is in it; no link is followed. Nothing there is no error."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _is_own(path: Path, contents: dict[str, bytes]) -> bool:
    return path.name in contents or LEFTOVER.fullmatch(path.name) is not None


def _take_along(path: Path, target: Path) -> None:
    if path.is_symlink() or not path.is_dir():
        with suppress(OSError):
            os.link(path, target, follow_symlinks=False)
            return
        shutil.copy2(path, target, follow_symlinks=False)  # a disk without hard links
    else:
        shutil.copytree(path, target, symlinks=True)


def _exchange(new: Path, old: Path) -> None:
    """Give ``new`` the name of ``old``, and the other way if there is one; at once where the system can do it."""
    if old.is_dir() and not old.is_symlink():
        rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
        if rename is not None and not rename(CURRENT_FOLDER, bytes(new), CURRENT_FOLDER, bytes(old), EXCHANGE):
            return
        # Between these two steps there is nothing by that name, never a mixture.
        aside = new.with_name(f".old{new.name}")
        remove(aside)
        old.rename(aside)
        new.rename(old)
        remove(aside)
    else:
        old.unlink(missing_ok=True)
        new.rename(old)
