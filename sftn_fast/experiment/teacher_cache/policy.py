"""Policy of ``cache_teacher``: which images it serves, and the disk space it takes."""

from __future__ import annotations

import shutil
from pathlib import Path

from sftn_fast.config import Config, check
from sftn_fast.data import ImageData
from sftn_fast.engine.device import AMP_DTYPES
from sftn_fast.experiment import kinds
from sftn_fast.experiment.teacher_cache.store import files
from sftn_fast.utils.format import readable_bytes

FOLDER = "teacher-logits"
"""Folder in a seed's folder, with a folder for each job whose network teaches."""


def epoch_bytes(config: Config, images: ImageData) -> int:
    """Return the bytes of the logits of one epoch, in memory and in a file."""
    return (images.of_students or images).num_train * images.num_classes * AMP_DTYPES[config.engine.amp].itemsize


def missing_bytes(config: Config, images: ImageData, root: Path) -> int:
    """Return the bytes of the files that a run in ``root`` still has to write."""
    if "distill" not in config.stages:
        return 0
    folders = [root / f"seed{seed}" / FOLDER / name for seed in config.seeds for name in kinds.teachers(config)]
    names = files(config.epochs_of("distill"), augmented=images.train.augments)
    missing = sum(not (folder / name).is_file() for folder in folders for name in names)
    return missing * epoch_bytes(config, images)


def check_run(config: Config, images: ImageData, root: Path) -> None:
    """Raise :class:`ConfigError` if the images are not reproducible, or the disk has no room for the logits."""
    allowed = f"false for {images.name}, whose loader does not declare that its images depend on seed and epoch alone"
    check(getattr(images.train, "deterministic", False), "cache_teacher", True, allowed)
    needed = missing_bytes(config, images, root)
    existing = next(folder for folder in (root, *root.parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    room = f"{readable_bytes(needed)} of logits, and {existing} has {readable_bytes(free)} free"
    check(needed <= free, "cache_teacher", True, f"false for want of room: the run would write {room}")


def describe(folder: Path, images: ImageData, epochs: int) -> str:
    """Return a line that tells which logits are cached, and which will be."""
    names = files(epochs, augmented=images.train.augments)
    cached = sum((folder / name).is_file() for name in names)
    if not images.train.augments:
        return f"teacher's logits, the same in every epoch, are {'read from' if cached else 'written to'} {folder}"
    others = ", the others are written there" if cached < epochs else ""
    return f"teacher's logits: {cached} of {epochs} epochs are in {folder}{others}"
