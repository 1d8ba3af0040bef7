"""Checksums of files: a file counts by its content, not by its name."""

from __future__ import annotations

import hashlib
import importlib.util
import os
from collections.abc import Iterable
from pathlib import Path

from sftn_fast.models.export import WEIGHTS
from sftn_fast.models.pretrained import cached_file, is_published

CHUNK = 2**20


def of_file(path: Path) -> str | None:
    """Return the checksum of a file; None if it can't be read."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while part := file.read(CHUNK):
                digest.update(part)
    except OSError:
        return None
    return f"sha256:{digest.hexdigest()}"


def of_weights(path: str, network: str) -> str | None:
    """Return the checksum of the weights that a configuration names for :func:`sftn_fast.models.load_weights`.

    Args:
        path: A file, a folder that training exported, or published weights such as ``torchvision:DEFAULT``.
        network: Name of the network that reads them.

    Returns:
        None for a file that is missing, or not downloaded yet.
    """
    if is_published(path):
        cached = cached_file(path, network)
        return None if cached is None else of_file(cached)
    file = Path(os.path.expanduser(path))  # noqa: PTH111  # Path.expanduser raises if there is no such user
    return of_file(file / WEIGHTS if file.is_dir() else file)


def of_plugins(plugins: Iterable[str]) -> list[str | None]:
    """Return a checksum for each plugin: of its file, or of all Python files in its package."""
    return [_of_sources(_sources(plugin)) for plugin in plugins]


def _sources(plugin: str) -> list[Path]:
    """Return the files of a plugin; of a package, all Python files in it."""
    if plugin.endswith(".py"):
        return [Path(plugin).expanduser()]
    found = importlib.util.find_spec(plugin)
    if found is None or found.origin is None:
        return []
    origin = Path(found.origin)
    return sorted(origin.parent.rglob("*.py")) if origin.name == "__init__.py" else [origin]


def _of_sources(paths: list[Path]) -> str | None:
    if len(paths) == 1:
        return of_file(paths[0])
    digest = hashlib.sha256()
    for path in paths:
        digest.update(f"{path.relative_to(paths[0].parent)} {of_file(path)}\n".encode("utf-8", "surrogateescape"))
    return f"sha256:{digest.hexdigest()}" if paths else None
