"""Paths on the command line: ``~`` replaced, and files for output checked before any long work."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from sftn_fast.config import ConfigError, check, check_path
from sftn_fast.utils.atomic import temporary_name


def expand_user(name: str | Path) -> Path:
    """Return ``name`` with ``~`` replaced; unchanged if there is no such user, so that the path is reported as missing.

    ``Path.expanduser`` raises for an unknown user.
    """
    return Path(os.path.expanduser(name))  # noqa: PTH111


def output_file(name: str, *, key: str = "--output", overwrite: bool = True) -> Path:
    """Return the path of the file to write, with ``~`` replaced.

    Args:
        name: What the user gave.
        key: Option, for messages.
        overwrite: Accept the name of an existing file.

    Raises:
        ConfigError: No such file can be written, it exists and may not be overwritten, or the path is of something
            other than a file. A device or pipe is refused, because writing a file atomically would replace it.
    """
    check_path(key, name)
    path = expand_user(name)
    check(os.path.isdir(path.parent), key, name, "a file in an existing folder")  # noqa: PTH112  pathlib's may raise
    check(not os.path.lexists(path) or _is_file(path), key, name, "a file, not a folder, device or pipe")
    check(overwrite or not os.path.lexists(path), key, name, "a new file, because --overwrite is not given")
    _check_writable(path, key, name)
    return path


def require_named(given: Mapping[str, str | Sequence[str] | None]) -> None:
    """Raise :class:`ConfigError` for an empty text where a path belongs: to the system, it is the working folder.

    Args:
        given: What the user gave, by option; None for an option that was not given.
    """
    for key, value in given.items():
        for name in [value] if isinstance(value, str) else value or ():
            check(bool(name.strip()), key, name, "a path")


def refuse_input(output: Path, key: str, inputs: Iterable[Path]) -> None:
    """Raise :class:`ConfigError` if ``output``, which ``key`` names, is one of the files to be read."""
    try:
        taken = output.stat()
    except OSError:  # a new file
        return
    for path in inputs:
        with suppress(OSError):  # a missing file is reported where it is read
            check(not os.path.samestat(path.stat(), taken), key, str(output), "another file than those that are read")


def _check_writable(path: Path, key: str, name: str) -> None:
    """Create and remove the temporary file of :func:`sftn_fast.utils.atomic.write_atomically`.

    ``os.access`` is not enough: root may write everywhere, but not to ``/proc`` or a read-only disk.
    """
    temporary = temporary_name(path)
    try:
        os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        temporary.unlink()
    except OSError as error:
        raise ConfigError(f"{key} must be a file that can be written, got {name!r}: {error.strerror}") from error


def _is_file(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except OSError:  # a link that leads nowhere; writing replaces it
        return path.is_symlink()
