"""The one file that a session leaves: logs, records and what was said about them, small enough to come back."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

SESSION = "session.json"
SUFFIXES = (".csv", ".json", ".jsonl", ".log", ".md", ".png", ".yaml")
LIMIT = 12 * 2**20
"""Bytes of an archive's files before compression: with it, they stay below 16 MiB for certain."""
FILE_LIMIT = 2 * 2**20


class ArchiveError(ValueError):
    """A file that is no archive of a session."""


def write(folder: Path, target: Path) -> list[str]:
    """Write the files of ``folder`` into ``target`` at once, and return the names of those that were left out.

    A reader never sees half an archive: it is replaced as a whole. Records come first if there is too much.
    """
    found = [path for path in folder.rglob("*") if path.is_file() and path.suffix in SUFFIXES]
    found.sort(key=lambda path: (path.name != SESSION, path.parent.name != "records", path.stat().st_size))
    left_out, total = [], 0
    partial = target.with_suffix(".part")
    with tarfile.open(partial, "w:gz", compresslevel=6) as archive:
        for path in found:
            name, content = str(path.relative_to(folder)), path.read_bytes()  # at once: a log may grow meanwhile
            if len(content) > FILE_LIMIT or total + len(content) > LIMIT:
                left_out.append(name)
                continue
            total += len(content)
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            entry.mtime = int(path.stat().st_mtime)
            archive.addfile(entry, io.BytesIO(content))
    partial.replace(target)
    return left_out


def extract(source: Path, folder: Path) -> dict[str, Any]:
    """Extract an archive into ``folder`` and return its session.

    Raises:
        ArchiveError: it is not readable, or not of a session.
    """
    try:
        with tarfile.open(source) as archive:
            archive.extractall(folder, filter="data")
        session: dict[str, Any] = json.loads((folder / SESSION).read_text())
        session["device"], session["run"], session["outcomes"]
    except (OSError, tarfile.TarError, ValueError, KeyError, EOFError) as error:
        first_line = str(error).partition("\n")[0]
        raise ArchiveError(f"{source}: no archive of a session ({type(error).__name__}: {first_line})") from error
    return session
