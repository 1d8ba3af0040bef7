"""Resuming a whole run: ``--resume must`` and ``--resume PATH``, the folder of another run.

auto, never and force concern each job by itself, see :mod:`sftn_fast.experiment.job_state`. A run from another folder
is copied first, so that the original stays unchanged.

The copy is made in a temporary folder, which gets a marker once it is complete. Then its seeds are moved to their
place, and the marker last. If that is interrupted, the next start moves the rest, or copies again.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path

from sftn_fast.config import RESUME, Config, ConfigError
from sftn_fast.engine import RunFolder
from sftn_fast.experiment.plan import RESULT
from sftn_fast.loggers import run_ids
from sftn_fast.utils import run_files
from sftn_fast.utils.atomic import write_atomically

MARKER = run_files.MARKER
TEMPORARY = run_files.COPY
"""Folder in a run's folder in which the copy is made."""


def source_of(config: Config, root: Path) -> Path | None:
    """Return the folder of the run that has to be copied to ``root`` first, if any. Changes nothing.

    Raises:
        ConfigError: There is nothing to resume although the run must, or it can't be resumed.
    """
    if config.resume == "must" and not _has_begun(root):
        raise ConfigError(f"resume is must, but {root} holds nothing to resume: no checkpoint, no finished stage")
    if config.resume in RESUME:
        return None
    source = Path(config.resume).expanduser().resolve()
    if not _has_begun(source):
        within = next((folder for folder in source.parents if _has_begun(folder)), None)
        hint = f"; it is part of the run {within}" if within else ""
        raise ConfigError(
            f"resume must be {', '.join(RESUME)} or the folder of a run that has begun, got {config.resume!r}{hint}"
        )
    if source == root or _marked(root) == str(source):  # the same command was stopped and started again
        return None
    if _has_begun(root) and _marked(root / TEMPORARY) != str(source):
        raise ConfigError(f"output {root} holds another run, which was not resumed from {source}; choose another")
    RunFolder(source).check_free()
    return source


def for_jobs(config: Config) -> Config:
    """Return ``config`` with ``resume`` as the jobs need it: what they resume is in the run's folder by now."""
    return config if config.resume in ("never", "force") else dataclasses.replace(config, resume="auto")


def copy(source: Path, root: Path) -> None:
    """Copy the jobs of the run in ``source`` to ``root``, which holds none but those of an interrupted copy."""
    temporary = root / TEMPORARY
    try:
        if _marked(temporary) != str(source):
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir()
            for seed in run_files.seed_folders(source):
                # The copy is another run, at the services too.
                shutil.copytree(seed, temporary / seed.name, ignore=shutil.ignore_patterns(run_ids.FILE))
            os.sync()  # the marker promises that all of it is on the disk
            write_atomically(temporary / MARKER, os.fsencode(f"{source}\n"))
        clean_up(root)
    except OSError as error:
        if _marked(temporary) is None:
            shutil.rmtree(temporary, ignore_errors=True)
        raise ConfigError(f"{source} can't be copied to {root}: {error.strerror or error}") from error


def clean_up(root: Path) -> None:
    """Finish a complete copy that was interrupted, or remove the remains of an incomplete one."""
    temporary = root / TEMPORARY
    if _marked(temporary) is not None:
        for seed in run_files.seed_folders(temporary):
            seed.rename(root / seed.name)
        (temporary / MARKER).rename(root / MARKER)
    shutil.rmtree(temporary, ignore_errors=True)


def _has_begun(root: Path) -> bool:
    """Return whether ``root`` is a run's folder with a finished job or a checkpoint in it."""
    patterns = (RESULT, "checkpoints/step_*", "init-*/checkpoints/step_*")
    jobs = run_files.job_folders(root)
    return any(True for job in jobs for pattern in patterns for _ in job.glob(pattern))


def _marked(root: Path) -> str | None:
    marker = root / MARKER
    return marker.read_text(encoding="utf-8", errors="surrogateescape").rstrip("\n") if marker.is_file() else None
