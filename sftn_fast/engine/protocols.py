"""Types of what the engine is given: a task to train and data to train it on.

They are protocols: a class fits by what it has, without inheriting from anything here. Those that are asked for at run
time have methods alone: from Python 3.12 on, ``isinstance`` finds no submodule of an ``nn.Module``, such as ``model``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from sftn_fast.data.loaders import DeferredBatch


class Batch(Protocol):
    """Images with their labels. :class:`sftn_fast.data.Batch` is one."""

    @property
    def images(self) -> Tensor:
        """``[N, C, H, W]``, or ``[N, views, C, H, W]`` where the task asks for several views of each image."""

    @property
    def target(self) -> Tensor:
        """Labels ``[N]`` int64, or probabilities ``[N, K]`` if images are mixed or labels smoothed."""

    @property
    def index(self) -> Tensor:
        """Numbers of the images in the training data ``[N]`` int64."""


Terms = dict[str, Tensor]
"""Terms of a loss by name, 0-dim. ``total`` carries the gradient, the others are detached."""


class Task(Protocol):
    """An ``nn.Module`` to train. Each of its parameters that requires a gradient learns."""

    @property
    def model(self) -> nn.Module | None:
        """The network that is evaluated: images ``[N, C, H, W]`` to logits ``[N, K]``. None if there is none."""

    def __call__(self, images: Tensor, target: Tensor, index: Tensor) -> Terms:
        """Return the terms of one batch, 0-dim float32, under autocast too. The engine minimises ``total``."""


@runtime_checkable
class EpochTask(Protocol):
    """A task that is told when an epoch begins."""

    def begin_epoch(self, epoch: int) -> bool:
        """Prepare for ``epoch``, counted from 0, and return whether steps compute differently from now on.

        A step replayed from a CUDA graph sees new values of the same tensors and no other change. It is recorded again
        if this returns True.
        """


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters of a task that learn by settings of their own."""

    parameters: Sequence[Tensor]
    lr: float = 1.0
    """Factor on the learning rate, 0 or more, in every step of the schedule."""
    weight_decay: float | None = None
    """Weight decay; None for that of the other parameters."""


@runtime_checkable
class GroupedTask(Protocol):
    """A task of which some parameters learn by settings of their own."""

    def parameter_groups(self) -> list[ParameterGroup]:
        """Return these parameters, each in one group only. All others learn by the optimizer's settings."""


@runtime_checkable
class FrozenTask(Protocol):
    """A task with networks that do not learn."""

    def store_frozen(self, autocast: torch.autocast) -> Callable[[], None]:
        """Store their weights in the dtype to which ``autocast`` would cast them in each step; return what undoes it.

        Nothing that the task computes under ``autocast`` may change.
        """


class TrainData(Protocol):
    """Batches of a training split."""

    def __len__(self) -> int:
        """Return the number of steps in an epoch, equal on all ranks."""

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Return the batches of ``epoch`` from step ``start`` on.

        They must be a function of ``(epoch, step)`` alone: a resumed run restores no loader state.
        """


@runtime_checkable
class DeferredTrainData(TrainData, Protocol):
    """Training data that also gives its batches before they are made, for a step that makes them itself."""

    def deferred_batches(self, epoch: int, start: int = 0) -> Iterator[DeferredBatch]:
        """Return the batches of :meth:`TrainData.epoch`, not yet made."""


EvalData = Iterable[Batch]
"""Batches of a split that is evaluated. Each iteration starts over."""


class Splits(Protocol):
    """A data set. :func:`sftn_fast.data.build` returns one."""

    @property
    def num_train(self) -> int:
        """Images in the training split."""

    @property
    def train(self) -> TrainData:
        """Training split."""

    @property
    def val(self) -> EvalData | None:
        """Validation split, None if nothing is held out."""

    @property
    def test(self) -> EvalData:
        """Test split."""
