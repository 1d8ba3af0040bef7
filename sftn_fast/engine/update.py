"""An optimizer's update of the weights, which a verdict on the device can skip."""

from __future__ import annotations

import torch
from torch import Tensor

from sftn_fast.engine.finite import Snapshot
from sftn_fast.engine.optim import FACTOR, is_fused, parameters_of, runs_on_device, state_of


class Update:
    """Step of ``optimizer``: ``update(skipped)`` leaves no trace if ``skipped`` is 1.

    A fused kernel reads the verdict itself. Other optimizers whose step runs on the device alone are undone there, from
    a copy of weights and state. The rest read the verdict on the host, which waits for a GPU.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, lr: Tensor) -> None:
        self.optimizer = optimizer
        self._fused, self._on_device = is_fused(optimizer), runs_on_device(optimizer)
        self._snapshot = None
        if self._on_device:
            for group in optimizer.param_groups:
                group["lr"] = torch.zeros_like(lr) if FACTOR in group else lr
        if self._on_device and not self._fused:
            self._snapshot = Snapshot([*parameters_of(optimizer), *state_of(optimizer)])

    def set_lr(self, lr: float) -> None:
        """Set the learning rate of the next step where the optimizer does not read that of all groups on the device."""
        for group in self.optimizer.param_groups:
            rate = lr * group[FACTOR] if FACTOR in group else lr
            if not self._on_device:
                group["lr"] = rate
            elif FACTOR in group:
                group["lr"].fill_(rate)

    def __call__(self, skipped: Tensor) -> None:
        """Update the weights by their gradients, unless ``skipped``, a 0-dim tensor of 0 or 1."""
        if self._fused:
            self.optimizer.found_inf = skipped  # type: ignore[attr-defined]
            self.optimizer.step()
        elif self._snapshot is not None:
            self._snapshot.take()
            self.optimizer.step()
            with torch.no_grad():
                self._snapshot.restore_if(skipped > 0)
        elif not skipped:
            self.optimizer.step()
