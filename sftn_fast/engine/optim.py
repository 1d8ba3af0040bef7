"""SGD as in CRD and SFTN, and its learning rate as a pure function of the step."""

from __future__ import annotations

import bisect
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from sftn_fast.config import OptimConfig


@dataclass(frozen=True)
class Schedule:
    """Learning rate of each step: ``schedule(step)``, with steps counted from 0 over the whole run.

    It is a pure function, so a resumed run has no scheduler state to restore.
    """

    optim: OptimConfig
    lr: float
    """The peak: after a warm-up, before the decay by milestones or cosine."""
    steps_per_epoch: int
    epochs: int

    def __call__(self, step: int) -> float:
        """Return the learning rate of ``step``. With milestone 150, epoch 151 is the first with gamma times it."""
        warmup = round(self.optim.warmup_epochs * self.steps_per_epoch)
        if step < warmup:
            return self.lr * (0.1 + 0.9 * step / warmup)
        if self.optim.schedule == "milestones":
            return self.lr * self.optim.gamma ** bisect.bisect_right(self.milestones, step // self.steps_per_epoch)
        if self.optim.schedule == "cosine":
            progress = (step - warmup) / max(1, self.steps_per_epoch * self.epochs - warmup)
            return self.lr * 0.5 * (1 + math.cos(math.pi * progress))
        return self.lr

    @property
    def milestones(self) -> tuple[int, ...]:
        """Epochs after which the learning rate drops."""
        return self.optim.milestones_of(self.epochs)

    def describe(self) -> str:
        """Return a line that describes the learning rate and what follows from the number of epochs."""
        optim, end = self.optim, f"{self.epochs} epoch{'s' * (self.epochs > 1)}"
        warmup = f", after {optim.warmup_epochs:g} epochs of warm-up" if optim.warmup_epochs else ""
        if optim.schedule == "cosine":
            return f"learning rate {self.lr:g}{warmup}, down to 0 along a cosine over {end}"
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


def build_sgd(task: nn.Module, optim: OptimConfig, lr: float) -> torch.optim.SGD:
    """Return an SGD for every parameter of ``task`` that requires a gradient, with weight decay on all of them.

    Both follow the reference code. It is the fused variant, because that can skip a step by a flag on the device
    (``optimizer.found_inf``).

    Raises:
        ValueError: no parameter of ``task`` requires a gradient.
    """
    parameters = [p for p in task.parameters() if p.requires_grad]
    if not parameters:
        raise ValueError("the task has no parameter that requires grad: there is nothing to train")
    sgd = torch.optim.SGD(
        parameters, lr, momentum=optim.momentum, weight_decay=optim.weight_decay, nesterov=optim.nesterov, fused=True
    )
    # Fused SGD allocates uninitialised momentum, which a skipped first step would leave in place. With zeros the first
    # step is the same: 0 * momentum + gradient.
    if optim.momentum > 0:
        for parameter in parameters:
            sgd.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return sgd


def load_sgd(sgd: torch.optim.SGD, state: Mapping[str, Any]) -> None:
    """Load ``state`` into an optimizer of :func:`build_sgd`.

    The fused kernel reads parameter, gradient and momentum by address. The momentum is therefore converted to the
    parameter's memory format, whatever it is in the checkpoint.
    """
    sgd.load_state_dict(dict(state))
    for parameter, entry in sgd.state.items():
        if entry.get("momentum_buffer") is not None:
            entry["momentum_buffer"] = torch.empty_like(parameter).copy_(entry["momentum_buffer"])
