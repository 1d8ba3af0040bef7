"""Published data set files: folders, checksums, downloads, and a lock on the folder."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Protocol

from sftn_fast.config import ConfigError, DataConfig
from sftn_fast.data.notices import print_once
from sftn_fast.data.regular_files import open_regular
from sftn_fast.data.source import require
from sftn_fast.utils.file_lock import try_lock
from sftn_fast.utils.progress import LINE_INTERVAL, ProgressBar

BLOCK = 2**22  # bytes hashed at a time
MAX_BYTES = 2**30  # of a file that is read as a whole; the largest published one has a quarter of that
LOCK_INTERVAL = 0.1  # seconds between attempts to lock a folder
SCRATCH = ".unfinished-"  # prefix of temporary folders

NOT_A_LINK_OR_PIPE = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)  # flags, where the system has them


class PublishedArchive(Protocol):
    """A class of ``torchvision.datasets`` that describes an archive and the files in it."""

    url: str
    filename: str
    tgz_md5: str
    base_folder: str
    train_list: list[list[str]]
    """Name and md5 of each file of the training split, as :attr:`test_list` of the test split."""
    test_list: list[list[str]]


def root_folder(config: DataConfig) -> Path:
    """Return ``data.root`` as an absolute path, with ``~`` expanded."""
    return Path(config.root).expanduser().absolute()


def missing(name: str, folders: list[Path], remedy: str) -> ConfigError:
    """Return the error for a data set without files."""
    searched = " and ".join(map(str, folders))
    return ConfigError(f"data.name={name}: no files in {searched}; {remedy}, or set data.root to their folder")


def read_verified(path: Path, md5: str) -> bytes:
    """Read ``path`` and check that it is the published file.

    The bytes returned are the bytes that were checked: the file is opened only once.

    Raises:
        ConfigError: The checksum differs, or the file can't be read.
    """
    try:
        with open_regular(path, MAX_BYTES) as file:
            content = file.read()
    except OSError as error:
        raise ConfigError(f"{path} can't be read ({error})") from error
    _require(path, len(content), hashlib.md5(content, usedforsecurity=False).hexdigest(), md5)
    return content


@contextmanager
def opened_verified(path: Path, md5: str) -> Iterator[BinaryIO]:
    """Open ``path`` as a context after checking that it is the published file, which may be larger than memory.

    Raises:
        ConfigError: The checksum differs.
        OSError: The file can't be read.
    """
    digest = hashlib.md5(usedforsecurity=False)
    with open_regular(path) as file:
        size, done = os.fstat(file.fileno()).st_size, 0
        label = f"checking {path}"
        with ProgressBar(size // 10**6, start=None, label=label, unit="MB", line_interval=LINE_INTERVAL) as progress:
            while block := file.read(BLOCK):
                digest.update(block)
                done += len(block)
                progress.update(done // 10**6)
        _require(path, done, digest.hexdigest(), md5)
        file.seek(0)
        yield file


def _require(path: Path, size: int, found: str, md5: str) -> None:
    if found != md5:
        raise ConfigError(
            f"{path} is corrupt or not the published file: {size} bytes with md5 {found}, expected {md5}; "
            "remove it and download it again"
        )


def download(published: PublishedArchive, folder: Path, name: str) -> Path:
    """Download the archive of one of torchvision's data sets, and check its md5.

    Args:
        published: The class in ``torchvision.datasets``.
        folder: Where the archive is saved.
        name: The value of ``data.name``, for messages.

    Returns:
        Path of the archive.

    Raises:
        ConfigError: It can't be downloaded or its checksum differs, or torchvision is missing.
    """
    utils = require("torchvision.datasets.utils", "torchvision", f"data.name={name}")
    try:
        utils.download_url(published.url, folder, published.filename, published.tgz_md5)
    except (OSError, RuntimeError) as error:
        raise ConfigError(f"data.name={name}: {published.url} could not be downloaded ({error})") from error
    return folder / published.filename


@contextmanager
def exclusive(folder: Path) -> Iterator[Path]:
    """Lock ``folder`` as a context, against other ranks and other runs; create it if it does not exist.

    If the file system has no locks, the folder is not locked and a notice says so. Downloads by several processes then
    cost time but are still safe, because each has a temporary folder of its own.

    Yields:
        A temporary folder inside ``folder``. Files that are written there and moved when complete never appear half
        written under their final names, however the run ends.

    Raises:
        ConfigError: The folder can't be created or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | NOT_A_LINK_OR_PIPE, 0o666)
    except OSError as error:
        raise ConfigError(f"data.root must be a folder that can be written to, got {folder} ({error})") from error
    try:
        if _wait_for_lock(lock, folder):
            for unfinished in folder.glob(f"{SCRATCH}*"):  # of a killed run: no live one has the lock
                shutil.rmtree(unfinished, ignore_errors=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=SCRATCH) as scratch:
            yield Path(scratch)
    finally:
        os.close(lock)


def _wait_for_lock(lock: int, folder: Path) -> bool:
    """Lock the open file ``lock`` of ``folder``; return False, after a notice, if there are no locks."""
    while True:
        try:
            try_lock(lock)
        except BlockingIOError:
            time.sleep(LOCK_INTERVAL)
        except OSError as error:
            print_once(f"warning: {folder} can't be locked ({error}); let only one run at a time download")
            return False
        else:
            return True
