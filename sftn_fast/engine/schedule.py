"""The learning rate as a pure function of the step."""

from __future__ import annotations

import bisect
import math
from dataclasses import dataclass

from sftn_fast.config import OptimConfig
from sftn_fast.engine.optimizer_classes import default_lr

RISE = 0.3
"""Share of the steps in which onecycle rises, as in torch."""


def peak_lr(optim: OptimConfig, of_network: float) -> float:
    """Return the highest learning rate of a training, for its batch size.

    It is ``optim.lr``. Without that it is the own one of the optimizer's class, and in SGD ``of_network``.

    Raises:
        ConfigError: the schedule would start or end above it.
    """
    given = optim.lr if optim.lr is not None else default_lr(optim)
    peak = optim.scaled(of_network if given is None else given)
    optim.check_peak(peak)
    return peak


@dataclass(frozen=True)
class Schedule:
    """Learning rate of each step: ``schedule(step)``, with steps counted from 0 over the whole run.

    It is a pure function, so a resumed run has no scheduler state to restore.
    """

    optim: OptimConfig
    lr: float
    """The peak: after a warm-up, before the decay by milestones or along a cosine."""
    steps_per_epoch: int
    epochs: int

    def __call__(self, step: int) -> float:
        """Return the learning rate of ``step``. With milestone 150, epoch 151 is the first with gamma times it."""
        if self.optim.schedule == "onecycle":
            return self._one_cycle(step)
        warmup = round(self.optim.warmup_epochs * self.steps_per_epoch)
        if step < warmup:
            if self.optim.warmup_lr is None:
                return self.lr * (0.1 + 0.9 * step / warmup)
            return self.optim.warmup_lr + (self.lr - self.optim.warmup_lr) * step / warmup
        if self.optim.schedule == "milestones":
            return self.lr * self.optim.gamma ** bisect.bisect_right(self.milestones, step // self.steps_per_epoch)
        if self.optim.schedule == "cosine":
            progress = (step - warmup) / max(1, self._steps - warmup)
            return _along_cosine(self.lr, self.optim.min_lr, progress)
        return self.lr

    def _one_cycle(self, step: int) -> float:
        """Return the learning rate of ``step`` in torch's OneCycleLR, whose first step has the least of the rise."""
        rise, last = self._rise * self._steps - 1, self._steps - 1
        if step < rise:
            return _along_cosine(self._start, self.lr, step / rise)
        rise = max(rise, 0)
        return _along_cosine(self.lr, self.optim.min_lr, (step - rise) / max(1, last - rise))

    @property
    def _steps(self) -> int:
        return self.steps_per_epoch * self.epochs

    @property
    def _rise(self) -> float:
        """Share of the steps in which onecycle rises."""
        return self.optim.warmup_epochs / self.epochs or RISE

    @property
    def _start(self) -> float:
        """Learning rate of the first step of onecycle."""
        return self.lr / 25 if self.optim.warmup_lr is None else self.optim.warmup_lr

    @property
    def milestones(self) -> tuple[int, ...]:
        """Epochs after which the learning rate drops."""
        return self.optim.milestones_of(self.epochs)

    def describe(self) -> str:
        """Return a line that describes the learning rate and what follows from the number of epochs."""
        return self._describe() if self.optim.is_sgd else f"{self.optim.name}, {self._describe()}"

    def _describe(self) -> str:
        optim, end = self.optim, f"{self.epochs} epoch{'s' * (self.epochs > 1)}"
        epochs = f"{optim.warmup_epochs:g} epoch{'s' * (optim.warmup_epochs != 1)}"
        warmup = f", after {epochs} of warm-up" if optim.warmup_epochs else ""
        if optim.schedule == "cosine":
            return f"learning rate {self.lr:g}{warmup}, down to {optim.min_lr:g} along a cosine over {end}"
        if optim.schedule == "onecycle":
            rise = f"from {self._start:g} up in {self._rise * self.epochs:g} epochs and down to {optim.min_lr:g}"
            return f"learning rate {self.lr:g} in one cycle, {rise} at the end of {end}"
        if optim.schedule == "constant":
            return f"learning rate {self.lr:g}{warmup}, constant over {end}"
        # A milestone of 0, which results from very few epochs, has passed when training begins.
        drops = ", ".join(f"{epoch}" for epoch in self.milestones if epoch < self.epochs) or "no epoch"
        given = (
            ""
            if optim.milestones is not None
            else ", which is 5/8, 6/8 and 7/8 of them (optim.milestones gives others)"
        )
        return f"learning rate {self.lr:g}{warmup}, times {optim.gamma:g} after epoch {drops} of {end}{given}"

    def epoch(self, step: int) -> int:
        """Return the epoch of ``step``, counted from 1."""
        return step // self.steps_per_epoch + 1


def _along_cosine(start: float, end: float, progress: float) -> float:
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * progress))
