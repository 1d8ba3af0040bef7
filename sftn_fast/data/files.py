"""Files of data sets: where they are looked for, and checksums before anything reads them."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from sftn_fast.config import ConfigError, DataConfig
from sftn_fast.data.regular import open_regular
from sftn_fast.data.source import require
from sftn_fast.utils.progress import LINE_INTERVAL, ProgressBar

BLOCK = 2**22  # bytes that are hashed at a time
MAX_BYTES = 2**30  # of a file that is read as a whole; the largest has a quarter of that
SCRATCH = ".unfinished-"  # what temporary folders' names begin with


def root_folder(config: DataConfig) -> Path:
    """``data.root`` as an absolute path, ``~`` expanded."""
    return Path(config.root).expanduser().absolute()


def missing(name: str, folders: list[Path], remedy: str) -> ConfigError:
    """The error for a data set whose files are not there."""
    searched = " and ".join(map(str, folders))
    return ConfigError(f"data.name={name}: no files in {searched}; {remedy}, or name their folder in data.root")


def read_verified(path: Path, md5: str) -> bytes:
    """The content of ``path``, having made sure that it is the published one.

    The bytes that were checked are the bytes that are returned; the file is not opened twice.

    Raises:
        ConfigError: The checksum is another.
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
    """Context: the file ``path``, which may be larger than memory, having made sure that it is the published one.

    Raises:
        ConfigError: The checksum is another.
        OSError: It can't be read.
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
            "remove it and fetch it again"
        )


def download(published: Any, folder: Path, name: str) -> Path:
    """Fetch the archive that one of torchvision's data sets describes into ``folder``, checked against its md5.

    Args:
        published: The class in ``torchvision.datasets``, of which ``url``, ``filename`` and ``tgz_md5`` are read.
        folder: Where it goes.
        name: The data set's name here.

    Raises:
        ConfigError: It can't be fetched, or is another file; or torchvision is missing.
    """
    utils = require("torchvision.datasets.utils", "torchvision", f"data.name={name}")
    try:
        utils.download_url(published.url, folder, published.filename, published.tgz_md5)
    except (OSError, RuntimeError) as error:
        raise ConfigError(f"data.name={name}: {published.url} could not be fetched ({error})") from error
    return folder / published.filename


@contextmanager
def exclusive(folder: Path) -> Iterator[Path]:
    """Hold ``folder``, made if need be, against the other ranks of this run and against other runs.

    Yields:
        A temporary folder inside. What is written there and renamed when it is complete never lies half written under
        its final name, however the run ends.

    Raises:
        ConfigError: The folder can't be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Neither through a link nor into a pipe, should one lie there.
        lock = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    except OSError as error:
        raise ConfigError(f"data.root must be a folder that can be written to, got {folder} ({error})") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for left in folder.glob(f"{SCRATCH}*"):  # by a run that was killed, since nobody else holds the lock
            shutil.rmtree(left, ignore_errors=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=SCRATCH) as scratch:
            yield Path(scratch)
    finally:
        os.close(lock)
