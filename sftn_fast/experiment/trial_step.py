"""A trial step of each kind of job, before anything is trained: what can't learn is refused in one line."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from sftn_fast.config import Config, ConfigError
from sftn_fast.data import ImageData
from sftn_fast.distillers.method import InitTask
from sftn_fast.engine.schedule import peak_lr
from sftn_fast.experiment.kinds import KINDS
from sftn_fast.experiment.plan import Job
from sftn_fast.experiment.teacher_check import check_class_names
from sftn_fast.experiment.untrained import UntrainedRunner
from sftn_fast.tasks import DistillTask, Route, Task
from sftn_fast.utils.user_code import describe_error

IMAGES = 4
"""In the step. Two would do for BatchNorm, three for a loss over triples of images."""
SHOWN = 3
"""Names that a line has room for."""


def try_jobs(config: Config, jobs: Sequence[Job], images: ImageData) -> list[str]:
    """Train each kind of job for a step on noise, with untrained networks, on the CPU.

    Returns:
        Lines on parameters that will not learn.

    Raises:
        ConfigError: The images have one class, or networks, methods, learning rates and images don't fit each other.
    """
    if images.num_classes < 2:
        raise ConfigError(f"data.name must be of two classes or more, got {images.name} with {images.num_classes}")
    files = [behaviour.initial_file(config) for behaviour in KINDS.values()]
    for key, file in filter(None, files):
        check_class_names(key, file, images)
    # Each process by itself: a step that waits for the others would hang if one of them is refused.
    config = dataclasses.replace(config, gather=False)
    kinds = {(job.kind, job.method): job for job in jobs if job.behaviour.trains(config)}
    found = [line for job in kinds.values() for line in Trial(config, job, images).run()]
    return list(dict.fromkeys(found))


class Trial(UntrainedRunner):
    """Runs one step of a job."""

    def __init__(self, config: Config, job: Job, images: ImageData) -> None:
        super().__init__(config, job, Path(), torch.device("cpu"), images)

    def run(self) -> list[str]:
        """Build the job's task and train it for a step; see :func:`try_jobs`."""
        try:
            with _quietly(), torch.random.fork_rng(devices=[]):
                return self._try()
        except ConfigError:
            raise
        except Exception as error:  # a network or a method may raise anything
            what = self.behaviour.failure(self.config, self.job, self.data.name)
            reason = describe_error(error, named=not isinstance(error, ValueError))
            raise ConfigError(f"{what}: {reason}") from error

    def _try(self) -> list[str]:
        task = self.task().to(self.device)  # the task may hold tensors from the images' device
        if isinstance(task, DistillTask):
            for _, first in task.distiller.initialisations():
                self._step(first.task)
                first.task.finish()
        peak_lr(self.config.optim_of(self.job.kind), task.model.default_lr)
        self.images_for(task)  # refuses views that the loader can't give
        unused = self._step(task)
        self._evaluate(task.model)
        if not unused:
            return []
        names = ", ".join(unused[:SHOWN]) + ", ..." * (len(unused) > SHOWN)
        return [f"stage {self.job.kind}: {len(unused)} parameters get no gradient and stay as they are: {names}"]

    def _step(self, task: Task | InitTask) -> list[str]:
        """Compute loss and gradients once. Return the names of parameters that should learn and get no gradient."""
        task.train()
        if isinstance(task, Task):
            task.begin_epoch(0)
        total = task(*self._noise(task))["total"]
        learning = {name: p for name, p in task.named_parameters() if p.requires_grad}
        gradients = torch.autograd.grad(total, list(learning.values()), allow_unused=True)
        return [name for name, gradient in zip(learning, gradients, strict=True) if gradient is None]

    @torch.no_grad()
    def _evaluate(self, model: nn.Module) -> None:
        images, *_ = self._noise(None)
        logits = model.eval()(images)
        expected = (len(images), self.data.num_classes)
        if not isinstance(logits, Tensor) or tuple(logits.shape) != expected:
            given = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise ValueError(f"in evaluation it must give logits {list(expected)}, got {given}")

    def _noise(self, task: Task | InitTask | None) -> tuple[Tensor, Tensor, Tensor]:
        data, count = self.data, min(IMAGES, self.data.num_train)
        views = (task.views,) if isinstance(task, Task) and task.views > 1 else ()
        index = torch.arange(count)
        images = torch.randn(count, *views, data.in_channels, data.image_size, data.image_size)
        labels = index % data.num_classes
        return images, labels if data.mixing is None else data.mixing.probabilities(labels), index

    def route(self) -> Route | None:
        """Return None: there are no snapshots yet."""
        return None


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Suppress lines and warnings, which the job itself will print."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
