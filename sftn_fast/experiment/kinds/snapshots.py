"""Snapshots of a teacher in training, for students that learn along its route or from an earlier epoch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sftn_fast.config import Config
from sftn_fast.experiment.kinds.base import EndOfEpoch

if TYPE_CHECKING:
    from sftn_fast.experiment.job import JobRunner
    from sftn_fast.tasks import Task


def snapshot(folder: Path, epoch: int) -> Path:
    """Return where the teacher's job in ``folder`` saves its network as it was after ``epoch``, counted from 1."""
    return folder / "anchors" / f"epoch{epoch:04d}"


def route_epochs(config: Config, teacher: str) -> list[int]:
    """Return the epochs of the job ``teacher`` whose snapshots the route asks for."""
    return list(config.route.epochs_of(config.epochs_of(teacher)))


def snapshot_epochs(config: Config, teacher: str) -> dict[int, str]:
    """Return the epochs after which the job ``teacher`` saves a snapshot, each with the setting that asks for it."""
    epochs = dict.fromkeys(route_epochs(config, teacher), "route")
    if teacher == "teacher" and config.takes_early_teacher:
        epochs[config.early_epoch] = "teacher_epoch"
    return epochs


def snapshots(runner: JobRunner, task: Task) -> EndOfEpoch:
    """Return a callback that exports the network after each of :func:`snapshot_epochs`."""
    from sftn_fast import models

    def save(epoch: int) -> None:
        if epoch in snapshot_epochs(runner.config, runner.job.kind):
            models.save(task.model, snapshot(runner.folder, epoch), meta={"epoch": epoch})

    return save
