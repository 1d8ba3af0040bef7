"""What a file is, by its content: the same under another name, another with other bytes under the same name."""

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
    """Return the checksum of a file; None if there is none that can be read."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while part := file.read(CHUNK):
                digest.update(part)
    except OSError:
        return None
    return f"sha256:{digest.hexdigest()}"


def of_weights(path: str, network: str) -> str | None:
    """Return the checksum of the weights that a configuration names, as :func:`sftn_fast.models.load_weights` reads it.

    Args:
        path: A file, a folder that training exported, or published weights as ``torchvision:DEFAULT``.
        network: The network that they are for.

    Returns:
        None for a file that is not there, or not yet fetched.
    """
    if is_published(path):
        return of_file(cached_file(path, network))
    file = Path(os.path.expanduser(path))  # noqa: PTH111  # Path's own method raises where there is no such user
    return of_file(file / WEIGHTS if file.is_dir() else file)


def of_plugins(plugins: Iterable[str]) -> list[str | None]:
    """Return a checksum for each plugin: of its file, or of all Python files of its package."""
    return [_of_sources(_sources(plugin)) for plugin in plugins]


def _sources(plugin: str) -> list[Path]:
    """The files of a plugin; of a package all that lie in it."""
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
