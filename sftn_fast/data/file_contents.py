"""One checksum over the contents of image files, cheap enough to compute whenever a run starts."""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Sequence
from pathlib import Path

MAX_BYTES_READ = 2**30
"""Approximate limit on the bytes that are read. Larger data sets are sampled: every n-th file is read."""


def digest_of_files(paths: Sequence[str]) -> str:
    """Return a checksum over the size of every file and the contents of about a gigabyte of them.

    In a larger data set only every n-th file is read, with n chosen to stay near the limit. Names and dates do not
    count. An unreadable file counts as an empty one: decoding it will raise the error.
    """
    sizes = [_size(path) for path in paths]
    every = -(-sum(sizes) // MAX_BYTES_READ) or 1
    digest = hashlib.sha256(repr(sizes).encode())
    for path, size in list(zip(paths, sizes, strict=True))[::every]:
        if size:
            digest.update(hashlib.sha256(_read(path)).digest())
    return digest.hexdigest()


def digest_of_sizes(paths: Sequence[str]) -> str:
    """Return the sha256 of the files' sizes, which takes a glance at each file and reads none."""
    return hashlib.sha256(repr([_size(path) for path in paths]).encode()).hexdigest()


def _size(path: str) -> int:
    try:
        found = Path(path).stat()
    except OSError:
        return 0
    return found.st_size if stat.S_ISREG(found.st_mode) else 0  # opening a pipe may block forever


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError:
        return b""
