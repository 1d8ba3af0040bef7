"""Files of data sets: where they are looked for, and checksums before anything reads them."""

from __future__ import annotations

import fcntl
import hashlib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sftn_fast.config import ConfigError, DataConfig
from sftn_fast.data.source import require


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
    content = path.read_bytes()
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if found != md5:
        raise ConfigError(
            f"{path} is corrupt or not the published file: {len(content)} bytes with md5 {found}, expected {md5}; "
            "remove it and fetch it again"
        )
    return content


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
        lock = (folder / ".lock").open("w")
    except OSError as error:
        raise ConfigError(f"data.root must be a folder that can be written to, got {folder} ({error})") from error
    with lock, tempfile.TemporaryDirectory(dir=folder) as scratch:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield Path(scratch)
