"""What a run goes on from: ``--resume``.

auto, never and force are each stage's own affair, see :func:`sftn_fast.engine.fit`. Here are those that concern the run
as a whole: ``must``, and a path, which is the folder of another run. That run is copied, so that it stays as it is.

The copy is made in a folder of its own, which receives the marker when it is complete. Then its seeds are moved to
where they belong, and the marker last. Whenever that is broken off, the next start moves what is left, or copies again.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path

from sftn_fast.config import RESUME, Config, ConfigError
from sftn_fast.engine import RunFolder
from sftn_fast.experiment.plan import RESULT
from sftn_fast.utils.atomic import write_atomically

MARKER = "resumed-from"
"""File in a run's folder that names the run it was copied from; written when all of that run is there."""
TEMPORARY = ".tmp_resume"
"""Folder in a run's folder in which the copy is made."""


def source_of(config: Config, root: Path) -> Path | None:
    """The run that has to be copied to ``root`` first, if there is one. Only looks.

    Raises :class:`ConfigError` where the run must go on from something that is not there, or can't be used.
    """
    if config.resume == "must" and not _has_begun(root):
        raise ConfigError(f"resume is must, but {root} holds nothing to go on from: no checkpoint, no finished stage")
    if config.resume in RESUME:
        return None
    source = Path(config.resume).expanduser().resolve()
    if not _has_begun(source):
        within = next((folder for folder in source.parents if _has_begun(folder)), None)
        hint = f"; it lies in the run {within}" if within else ""
        raise ConfigError(
            f"resume must be {', '.join(RESUME)} or the folder of a run that has begun, got {config.resume!r}{hint}"
        )
    if source == root or _marked(root) == str(source):  # the latter: this very command, which was stopped
        return None
    if _has_begun(root) and _marked(root / TEMPORARY) != str(source):
        raise ConfigError(f"output {root} holds a run already, and not one that went on from {source}; choose another")
    RunFolder(source).check_free()
    return source


def with_stages_going_on(config: Config) -> Config:
    """``config`` for stages that find in the run's folder all that they are to go on from."""
    return config if config.resume in ("never", "force") else dataclasses.replace(config, resume="auto")


def copy(source: Path, root: Path) -> None:
    """Copy the stages of the run in ``source`` to ``root``, which has none but those of a copy that was broken off."""
    temporary = root / TEMPORARY
    try:
        if _marked(temporary) != str(source):
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir()
            for seed in source.glob("seed*"):
                shutil.copytree(seed, temporary / seed.name)
            os.sync()  # all of it is on the disk before the marker says so
            write_atomically(temporary / MARKER, f"{source}\n")
        clean_up(root)
    except OSError as error:
        if _marked(temporary) is None:
            shutil.rmtree(temporary, ignore_errors=True)
        raise ConfigError(f"{source} can't be copied to {root}: {error.strerror or error}") from error


def clean_up(root: Path) -> None:
    """Finish a copy that was broken off after it was complete; remove what is left of any other."""
    temporary = root / TEMPORARY
    if _marked(temporary) is not None:
        for seed in temporary.glob("seed*"):
            seed.rename(root / seed.name)
        (temporary / MARKER).rename(root / MARKER)
    shutil.rmtree(temporary, ignore_errors=True)


def _has_begun(root: Path) -> bool:
    """Whether ``root`` is a run's folder with a finished stage or a checkpoint in it."""
    patterns = (f"seed*/*/{RESULT}", "seed*/*/checkpoints/step_*", "seed*/*/init-*/checkpoints/step_*")
    return any(True for pattern in patterns for _ in root.glob(pattern))


def _marked(root: Path) -> str | None:
    marker = root / MARKER
    return marker.read_text(encoding="utf-8").rstrip("\n") if marker.is_file() else None
