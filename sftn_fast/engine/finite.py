"""Losses and gradients that are not finite: found on the device, told to the host when it asks."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

FP16_PATIENCE = (
    20  # halvings in a row that bring the scaler from its initial 2^16 to below one: scaling is no cure then
)


class NonFiniteError(FloatingPointError):
    """A loss or gradient that is not finite. Nothing was updated with it.

    Attributes:
        terms: the values that are not finite, by name.
        step: the step whose batch gave them, counted from 1 as in the log.
    """

    def __init__(self, terms: dict[str, float], step: int, where: str):
        values = ", ".join(f"{name} = {value}" for name, value in terms.items())
        super().__init__(
            f"not finite: {values} at {where}; stopped before the update, the last checkpoint is untouched"
        )
        self.terms = terms
        self.step = step


class FiniteWatch:
    """Judges each step's total loss and gradient norm on the device, without a word to the host.

    ``patience`` steps in a row that are not finite are a failure: 1 where nothing can help, more in fp16, where the
    scaler first gets to lower its scale. Once failed, every later step is told to skip too, so that the weights are
    still those before the failure when the host gets to :meth:`failure`, some steps later.
    """

    def __init__(self, device: torch.device, patience: int):
        self.patience = patience
        self._failed = torch.zeros((), dtype=torch.bool, device=device)
        self._streak = torch.zeros((), device=device)
        self._record: Tensor | None = None  # [values..., step] of the last step that was not finite
        self._names: list[str] = []

    def skip(self, values: dict[str, Tensor], step: int) -> Tensor:
        """Whether to skip the update (0-dim bool). ``values`` are 0-dim, "total" and "grad_norm" among them."""
        self._names = list(values)
        now = torch.stack([*values.values(), torch.full_like(values["total"], step, dtype=torch.float64)])
        bad = ~torch.isfinite(values["total"] + values["grad_norm"])
        self._record = now if self._record is None else torch.where(bad & ~self._failed, now, self._record)
        self._streak = (self._streak + 1) * bad
        self._failed = self._failed | (self._streak >= self.patience)
        return bad | self._failed

    def failure(self) -> tuple[dict[str, float], int] | None:
        """The values that are not finite and their step, or None while all is well. Waits for the device."""
        if self._record is None or not self._failed:
            return None
        *values, step = self._record.tolist()
        named = dict(zip(self._names, values, strict=True))
        return {name: value for name, value in named.items() if not math.isfinite(value)}, int(step)


class BufferSnapshot:
    """The buffers of ``module`` as they were before a step, to undo what a forward pass wrote into them.

    BatchNorm's running statistics are updated in the forward pass, long before anyone knows that the batch overflowed.
    """

    def __init__(self, module: nn.Module):
        self._live = list(module.buffers())
        self._saved = [buffer.clone() for buffer in self._live]

    def take(self) -> None:
        """Remember the buffers' present values."""
        for saved, live in zip(self._saved, self._live, strict=True):
            saved.copy_(live)

    def restore_if(self, condition: Tensor) -> None:
        """Put the remembered values back where ``condition`` (0-dim bool) holds, without asking the host."""
        for saved, live in zip(self._saved, self._live, strict=True):
            live.copy_(torch.where(condition, saved, live))
