"""Paths on the command line: ``~`` replaced, and files for output checked before any long work."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from sftn_fast.config import check


def expand_user(name: str | Path) -> Path:
    """Return ``name`` with ``~`` replaced; unchanged if there is no such user, so that the path is reported as missing.

    ``Path.expanduser`` raises for an unknown user.
    """
    return Path(os.path.expanduser(name))  # noqa: PTH111


def output_file(name: str, *, key: str = "--output") -> Path:
    """Return the path of the file to write, with ``~`` replaced.

    Raises:
        ConfigError: There is no such folder, it can't be written to, or the path is of something other than a file.
            A device or pipe is refused, because writing a file atomically would replace it.
    """
    path = expand_user(name)
    check(path.parent.is_dir(), key, name, "a file in an existing folder")
    check(os.access(path.parent, os.W_OK | os.X_OK), key, name, "a file in a folder that you may write to")
    check(not os.path.lexists(path) or _is_file(path), key, name, "a file, not a folder, device or pipe")
    return path


def _is_file(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except OSError:  # a link that leads nowhere; writing replaces it
        return path.is_symlink()
