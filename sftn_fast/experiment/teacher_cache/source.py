"""The cached logits of a job's teacher, attached to the task that reads them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sftn_fast import engine
from sftn_fast.config import Config
from sftn_fast.data import ImageData
from sftn_fast.distillers.teacher_mode import teacher_mode
from sftn_fast.engine import distributed
from sftn_fast.engine.device import AMP_DTYPES, is_channels_last
from sftn_fast.experiment.identity import trained_digest
from sftn_fast.experiment.kinds.base import EndOfEpoch
from sftn_fast.experiment.teacher_cache import policy
from sftn_fast.experiment.teacher_cache.store import TeacherLogits
from sftn_fast.tasks import DistillTask
from sftn_fast.utils.environment import surroundings

if TYPE_CHECKING:
    from sftn_fast.experiment.job import JobRunner


def cache_logits(runner: JobRunner, task: DistillTask) -> EndOfEpoch:
    """Skip the teacher's passes whose logits are cached. Return what writes those of an epoch after its end."""
    source, data = str(runner.job.source), runner.data
    folder = runner.seed_folder / policy.FOLDER / source
    distributed.say(f"  {policy.describe(folder, data, runner.config.epochs_of('distill'))}")
    about = {"teacher": trained_digest(runner.config, runner.seed_folder, source), "seed": runner.job.seed}
    return attach(task, data, runner.config, runner.device, folder, about).end_epoch


def attach(
    task: DistillTask, images: ImageData, config: Config, device: torch.device, folder: Path, about: dict[str, Any]
) -> TeacherLogits:
    """Let ``task`` read its teacher's logits from files in ``folder``, or write them there.

    Args:
        task: Is moved to ``device``.
        images: Training images.
        config: Of the run.
        device: On which the task trains.
        folder: The teacher's own.
        about: Identity of the teacher and the seed, beside the fingerprint of ``images``.
    """
    channels_last = is_channels_last(config.engine, task.model, device)
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
