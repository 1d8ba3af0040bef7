"""The one file that a session leaves: logs, records and what was said about them, small enough to come back."""

from __future__ import annotations

import io
import json
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from bench.gpu.part import Outcome
from sftn_fast.utils.atomic import write_atomically

SESSION = "session.json"
SUFFIXES = (".csv", ".json", ".jsonl", ".log", ".md", ".png", ".yaml")
LIMIT = 12 * 2**20
"""Bytes of an archive's files before compression: with it, they stay below 16 MiB for certain."""
FILE_LIMIT = 2 * 2**20


class ArchiveError(ValueError):
    """A file that is no archive of a session."""


def target(output: Path, run: str) -> Path:
    return output / f"{run}.tar.gz"


def write(folder: Path, target: Path) -> list[str]:
    """Write the files of ``folder`` into ``target`` at once, and return the names of those that were left out.

    A reader never sees half an archive: it is replaced as a whole. Records come first if there is too much.

    Raises:
        OSError: ``target`` can't be written. What it held stays.
    """
    left_out, total, packed = [], 0, io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz", compresslevel=6) as archive:
        for path, content in _contents(folder):
            name = str(path.relative_to(folder))
            if content is None or total + len(content) > LIMIT:
                left_out.append(name)
                continue
            total += len(content)
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    write_atomically(target, packed.getvalue())
    return left_out


def _contents(folder: Path) -> Iterator[tuple[Path, bytes | None]]:
    """Yield the files of a folder, None for too large ones. Programs still write there: files grow or vanish."""
    found = []
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):
            if path.suffix in SUFFIXES and path.is_file():
                found.append((path.name != SESSION, path.parent.name != "records", path.stat().st_size, path))
    for *_, path in sorted(found):
        with suppress(FileNotFoundError), path.open("rb") as file:
            content = file.read(FILE_LIMIT + 1)
            yield path, content if len(content) <= FILE_LIMIT else None


def extract(source: Path, folder: Path) -> dict[str, Any]:
    """Extract an archive into ``folder`` and return its session.

    Raises:
        ArchiveError: it is not readable, or not of a session.
    """
    try:
        with tarfile.open(source) as archive:
            archive.extractall(folder, filter="data")
        session: dict[str, Any] = json.loads((folder / SESSION).read_text())
        if session["device"] not in ("cpu", "cuda") or session["run"] not in ("first", "second"):
            raise ValueError(f"run {session['run']!r} on {session['device']!r}")
        session["conditions"].get("processor"), str(session["date"]), [Outcome(**x) for x in session["outcomes"]]
    except (OSError, tarfile.TarError, zlib.error, ValueError, KeyError, TypeError, AttributeError, EOFError) as error:
        first_line = str(error).partition("\n")[0]
        raise ArchiveError(f"{source}: no archive of a session ({type(error).__name__}: {first_line})") from error
    return session
