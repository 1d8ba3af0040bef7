"""Files that contain their own checksum, so that a damaged or edited file is detected, and checksums of other files.

A JSON object has the checksum under the key ``digest``, a text in a comment at its end. A file without a checksum,
from an older version or another program, is read without this check.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from pathlib import Path
from typing import Any

from sftn_fast.utils.atomic import open_flags
from sftn_fast.utils.strict_json import finite_or_null
from sftn_fast.utils.text import printable

DIGEST = "digest"
LARGEST = 64 * 2**20
"""Largest size of a JSON or YAML file in bytes. A run's own files have some kilobytes."""
FIRST_LINE = "# written by a run; the last line has the checksum of those above it\n"
LAST_LINE = "# sha256 "


class DamagedError(RuntimeError):
    """File of a run that is not what the run wrote. The message names the file and the fault."""


def seal(content: dict[str, Any]) -> str:
    """Return ``content`` as indented JSON that holds its own checksum, with null for numbers that are not finite."""
    rest = finite_or_null({key: value for key, value in content.items() if key != DIGEST})
    return json.dumps(rest | {DIGEST: _digest(rest)}, indent=2, allow_nan=False) + "\n"


def read_sealed(path: Path) -> dict[str, Any]:
    """Return the JSON object in ``path``, with its ``digest`` if it has one.

    Raises:
        DamagedError: The file is not a JSON object, has a wrong checksum, or can't be read.
    """
    try:
        content = json.loads(read_regular(path))
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{_shown(path)} is damaged: it is not JSON ({printable(error)})") from error
    if not isinstance(content, dict):
        raise DamagedError(f"{_shown(path)} is damaged: it holds no JSON object")
    if DIGEST in content and content[DIGEST] != _digest({k: v for k, v in content.items() if k != DIGEST}):
        raise DamagedError(f"{_shown(path)} is damaged: its content does not fit the checksum in it")
    return content


def seal_text(text: str) -> str:
    """Return ``text`` between two YAML comments. The last one has the checksum."""
    whole = f"{FIRST_LINE}{text}" + "\n" * (not text.endswith("\n"))
    return f"{whole}{LAST_LINE}{hashlib.sha256(whole.encode()).hexdigest()}\n"


def read_sealed_text(path: Path) -> str:
    """Return the text in ``path``, after comparing it with its checksum, if it has one.

    Raises:
        DamagedError: The file is not text, has a wrong checksum, or can't be read.
    """
    try:
        text = read_regular(path).decode()
    except ValueError as error:
        raise DamagedError(f"{_shown(path)} is damaged: it is not text ({printable(error)})") from error
    whole, mark, found = text.rpartition(LAST_LINE)
    sealed = mark or text.startswith(FIRST_LINE)
    if not text or "\0" in text or (sealed and found != f"{hashlib.sha256(whole.encode()).hexdigest()}\n"):
        raise DamagedError(f"{_shown(path)} is damaged or was changed: its lines do not fit the checksum under them")
    return text


def read_regular(path: Path, largest: int = LARGEST) -> bytes:
    """Return the bytes of a regular file.

    Raises:
        DamagedError: The file is missing, not a regular file, too large, or can't be read.
    """
    try:
        descriptor = os.open(path, open_flags("O_RDONLY", "O_CLOEXEC", "O_NONBLOCK", "O_BINARY"))
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise DamagedError(f"{_shown(path)} is {_kind(status.st_mode)}, not a file")
            if status.st_size > largest:
                raise DamagedError(f"{_shown(path)} is damaged: {status.st_size:,} bytes are too many")
            return file.read()
    except FileNotFoundError as error:
        raise DamagedError(f"{_shown(path)} is gone") from error
    except IsADirectoryError as error:
        raise DamagedError(f"{_shown(path)} is a folder, not a file") from error
    except OSError as error:
        raise DamagedError(f"{_shown(path)} can't be read: {error.strerror or error}") from error


def checksum(path: Path) -> dict[str, Any]:
    """Return size and SHA-256 of a file, as ``bytes`` and ``sha256``.

    Raises:
        OSError: The file can't be read.
    """
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256") if hasattr(hashlib, "file_digest") else _digest_of(file)
        return {"bytes": file.tell(), "sha256": digest.hexdigest()}


def fault_of(path: Path, expected: dict[str, Any]) -> str | None:
    """Compare a file with the :func:`checksum` ``expected``. Return the fault in words, or None."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            return f"is {_kind(status.st_mode)}, not a file"
        if status.st_size != expected["bytes"]:
            return f"has {status.st_size:,} bytes, not {expected['bytes']:,}"
        return None if checksum(path) == expected else "has changed since it was written"
    except FileNotFoundError:
        return "is gone"
    except OSError as error:
        return f"can't be read ({error.strerror or error})"


def _digest_of(file: Any) -> Any:
    digest = hashlib.sha256()
    while block := file.read(2**20):
        digest.update(block)
    return digest


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _kind(mode: int) -> str:
    return "a folder" if stat.S_ISDIR(mode) else "a pipe, socket or device"


def _shown(path: Path) -> str:
    return printable(path, 400)
