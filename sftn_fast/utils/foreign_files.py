"""Protection of the user's own files: a run refuses a folder that is no run's and holds files of a run's names."""

from __future__ import annotations

import json
import re
from pathlib import Path

from sftn_fast.config import ConfigError
from sftn_fast.utils import run_files
from sftn_fast.utils.checksummed import FIRST_LINE, DamagedError, read_regular, read_sealed_text
from sftn_fast.utils.text import listed, printable

CHECKPOINTS = ("checkpoints/step_*", "init-*/checkpoints/step_*")
SIGNED = re.compile(rb"\s*|\d+ on [^\n]*\n")
"""Content of a run's lock."""
SHOWN = 5
"""Largest number of names in a message."""


def refuse_foreign_files(root: Path) -> None:
    """Raise :class:`ConfigError` for a folder whose files a run would overwrite although no run wrote them.

    Files of other names may be there. A folder of a run is recognised by its sealed ``config.yaml`` or by its jobs.
    """
    try:
        taken = [path.name for path in sorted(root.iterdir()) if _is_of_a_run(path) and _holds_something(path)]
        if not taken or is_run(root):
            return
    except OSError:  # missing or not readable, which writing to it reports
        return
    raise ConfigError(
        f"output {printable(root, 400)} is not the folder of a run, and a run would overwrite "
        f"{listed(taken, shown=SHOWN)} there; choose another folder with --output NAME"
    )


def is_run(root: Path) -> bool:
    """Return whether a run has written to the folder ``root``."""
    return (
        _is_sealed(root / "config.yaml")
        or (root / run_files.COPY / run_files.MARKER).is_file()  # the copy of a run, not moved to its place yet
        or any(map(_has_begun, run_files.job_folders(root)))
    )


def _is_of_a_run(path: Path) -> bool:
    return path.name in (*run_files.OWN, run_files.STUDENT) or run_files.SEED.fullmatch(path.name) is not None


def _holds_something(path: Path) -> bool:
    """Return whether there is anything to lose: a file, a link, or a folder with one of them below it."""
    if path.name == run_files.LOCK and path.is_file() and not path.is_symlink():
        return SIGNED.fullmatch(_content(path)) is None
    if path.is_dir() and not path.is_symlink():
        return any(map(_holds_something, path.iterdir()))
    return True


def _content(path: Path) -> bytes:
    """Return the bytes of a file; empty if it can't be read, so that locking it reports why."""
    try:
        return read_regular(path)
    except DamagedError:
        return b""


def _is_sealed(path: Path) -> bool:
    """Return whether a file is as a run wrote it. A recipe that somebody made of such a file is not."""
    try:
        return read_sealed_text(path).startswith(FIRST_LINE)
    except DamagedError:
        return False


def _has_begun(job: Path) -> bool:
    """Return whether a job's folder has a checkpoint, or a result of one of the jobs here."""
    if any(True for pattern in CHECKPOINTS for _ in job.glob(pattern)):
        return True
    try:
        result = json.loads(read_regular(job / run_files.RESULT))
    except (DamagedError, ValueError, RecursionError):
        return False
    return isinstance(result, dict) and {"name", "seed", "network", "last"} <= result.keys()
