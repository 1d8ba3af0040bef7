"""Repair of a finished job whose files are damaged.

Logs are repaired here. A damaged network is not: its job resumes from the last checkpoint, where nothing is left to
train, and is evaluated and exported again.
"""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

from sftn_fast import models
from sftn_fast.engine import CheckpointStore
from sftn_fast.engine.checkpoint import is_checkpoint
from sftn_fast.engine.run_log import open_log, write_summary
from sftn_fast.utils import run_files
from sftn_fast.utils.atomic import write_all, write_atomically
from sftn_fast.utils.checksummed import DamagedError, checksum, seal

logger = logging.getLogger(__name__)


def repair(folder: Path, result: dict[str, Any]) -> bool:
    """Repair the files of the finished job in ``folder``, whose intact ``result.json`` holds ``result``.

    Names each damaged file in a warning. Returns whether the job's networks are intact; if not, the job has to resume.
    """
    damage = find_damage(folder, result)
    repaired = [
        name for name, fault in damage.items() if Path(name).name in run_files.LOGS and _repair_log(folder, name, fault)
    ]
    if repaired:
        _write_checksums(folder, result, repaired)
    intact = True
    for name, fault in damage.items():
        if name.startswith("anchors/"):
            # Only the training itself can write a snapshot of it.
            logger.warning("%s %s; only a route needs it: to get it back, remove %s", folder / name, fault, folder)
        elif _takes_the_job(name):
            logger.warning("%s %s; made again %s", folder / name, fault, source_of(folder))
            intact = False
    return intact


def lost(folder: Path) -> dict[str, str]:
    """Return the faults, by name, for which the finished job in ``folder`` has to resume. Changes nothing."""
    try:
        damage = find_damage(folder, run_files.read_result(folder))
    except DamagedError as error:
        return {run_files.RESULT: str(error)}
    return {name: fault for name, fault in damage.items() if _takes_the_job(name)}


def _takes_the_job(name: str) -> bool:
    return not name.startswith("anchors/") and Path(name).name in (*run_files.NETWORK, run_files.CLASSES)


def source_of(folder: Path) -> str:
    """Return in words what a lost network of the job in ``folder`` is made from."""
    return "from the last checkpoint" if has_checkpoint(folder) else "with the whole job, since it has no checkpoint"


def has_checkpoint(folder: Path) -> bool:
    """Return whether the job in ``folder`` has a checkpoint, readable or not."""
    return any(map(is_checkpoint, (folder / "checkpoints").glob("step_*")))


def find_damage(folder: Path, result: dict[str, Any]) -> dict[str, str]:
    """Return the faults of a finished job's files, by name; without checksums, only those of its network."""
    if run_files.has_checksums(result):
        return run_files.faults(folder, result)
    try:
        models.verify(folder)
    except (OSError, models.WeightsError) as error:
        return {run_files.NETWORK[0]: f"can't be used ({error})"}
    return {}


def _repair_log(folder: Path, name: str, fault: str) -> bool:
    """Write a summary again, or mark the loss in a log. Return whether that worked."""
    path = folder / name
    try:
        if path.is_dir():
            path.rmdir()  # which only works if it is empty
        if path.name == "summary.csv":
            _write_summary_again(path.parent)
            logger.warning("%s %s; written again from the last checkpoint", path, fault)
        else:
            _mark_loss(path, fault)
            logger.warning("%s %s; a part of it is lost, which the file now says", path, fault)
    except (OSError, LookupError, TypeError) as error:
        logger.warning("%s %s; it can't be repaired (%s)", path, fault, error)
        return False
    return True


def _write_summary_again(folder: Path) -> None:
    checkpoints = folder / "checkpoints"
    found = next(CheckpointStore(checkpoints).valid(), None) if checkpoints.is_dir() else None
    if found is None:
        raise LookupError("there is no checkpoint")
    write_summary(folder, found[1]["history"])


def _mark_loss(path: Path, fault: str) -> None:
    descriptor = open_log(path)
    try:
        with os.fdopen(os.dup(descriptor), "rb") as file:
            whole_lines = file.read().rfind(b"\n") + 1
        os.ftruncate(descriptor, whole_lines)
        os.lseek(descriptor, 0, os.SEEK_END)
        write_all(descriptor, json.dumps({"kind": "damaged", "what": fault}).encode() + b"\n")
    finally:
        os.close(descriptor)


def _write_checksums(folder: Path, result: dict[str, Any], names: list[str]) -> None:
    files = result[run_files.FILES] | {name: checksum(folder / name) for name in names}
    write_atomically(folder / run_files.RESULT, seal(result | {run_files.FILES: files}))
