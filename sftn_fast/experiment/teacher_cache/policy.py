"""``cache_teacher``: which images it can't serve, what it takes of the disk, and the logits of one stage's teacher."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sftn_fast import engine
from sftn_fast.config import Config, check
from sftn_fast.data import ImageData
from sftn_fast.distillers.teacher_mode import teacher_mode
from sftn_fast.engine.device import AMP_DTYPES, is_channels_last
from sftn_fast.experiment.teacher_cache.store import TeacherLogits, files
from sftn_fast.tasks import DistillTask
from sftn_fast.utils.environment import surroundings
from sftn_fast.utils.format import readable_bytes

FOLDER = "teacher-logits"
"""In a seed's folder: a folder for each stage whose network teaches."""


def epoch_bytes(config: Config, images: ImageData) -> int:
    """What the logits of one epoch take, in memory and in a file."""
    return images.num_train * images.num_classes * AMP_DTYPES[config.engine.amp].itemsize


def missing_bytes(config: Config, images: ImageData, root: Path) -> int:
    """What the files that a run in ``root`` has to write yet will take of the disk."""
    if "distill" not in config.stages:
        return 0
    teachers = {kind for kind in ("teacher", "sftn") if kind in config.stages}
    teachers |= {"teacher"} if config.teacher_file else set()
    folders = [root / f"seed{seed}" / FOLDER / teacher for seed in config.seeds for teacher in teachers]
    names = files(config.epochs_of("distill"), augmented=images.train.augments)
    missing = sum(not (folder / name).is_file() for folder in folders for name in names)
    return missing * epoch_bytes(config, images)


def check_run(config: Config, images: ImageData, root: Path) -> None:
    """Raise :class:`ConfigError` if the images can't be had again, or the disk has no room for the logits."""
    allowed = f"false for {images.name}, whose loader does not declare that its images depend on seed and epoch alone"
    check(getattr(images.train, "keyed", False), "cache_teacher", True, allowed)
    needed = missing_bytes(config, images, root)
    existing = next(folder for folder in (root, *root.parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    room = f"{readable_bytes(needed)} of logits, and {existing} has {readable_bytes(free)} free"
    check(needed <= free, "cache_teacher", True, f"false for want of room: the run would write {room}")


def keep_logits(
    task: DistillTask, images: ImageData, config: Config, device: torch.device, folder: Path, about: dict[str, Any]
) -> TeacherLogits:
    """Have ``task`` keep its teacher's logits in ``folder``, which is the teacher's own.

    Args:
        task: Moved to ``device``.
        about: What tells this teacher and these images from others, beside what ``images`` say of themselves.
    """
    channels_last = is_channels_last(config.engine.channels_last, task.model, device)
    layout = engine.Layout(device, AMP_DTYPES[config.engine.amp], channels_last)
    distiller = task.to(device).distiller
    teacher = distiller.teacher
    made_with = surroundings(device)
    identity = {
        **about,
        **images.fingerprint(),
        "batch_size": config.optim.batch_size,
        "accumulate": config.optim.accumulate,
        "amp": config.engine.amp,
        "channels_last": channels_last,
        "compile": config.engine.compile,
        **{key: made_with[key] for key in ("sftn_fast", "torch", "device")},
    }

    def logits_of(pictures: Tensor) -> Tensor:
        with layout.autocast(), teacher_mode(teacher):
            logits: Tensor = teacher(layout.images(pictures))
        return logits

    def unaugmented() -> Iterator[tuple[Tensor, Tensor]]:
        for batch in images.train.unaugmented():
            yield layout.indices(batch.index), logits_of(batch.images)

    logits = TeacherLogits(
        folder,
        identity,
        num_samples=images.num_train,
        seen=images.train.samples,
        like=logits_of(torch.zeros(1, images.in_channels, images.image_size, images.image_size)),
        unaugmented=None if images.train.augments else unaugmented,
    )
    distiller.keep_logits(logits)
    return logits


def describe(folder: Path, images: ImageData, epochs: int) -> str:
    """One line on which logits are there, and which will be."""
    names = files(epochs, augmented=images.train.augments)
    there = sum((folder / name).is_file() for name in names)
    if not images.train.augments:
        return f"teacher's logits, the same in every epoch, are {'read from' if there else 'written to'} {folder}"
    others = ", the others are written there" if there < epochs else ""
    return f"teacher's logits: {there} of {epochs} epochs are in {folder}{others}"
