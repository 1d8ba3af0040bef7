"""Losses and gradients that are not finite: found on the device, told to the host when it asks."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from sftn_fast.engine import distributed

# Halvings in a row that bring the scaler from its initial 2^16 to below one: scaling is no cure then.
FP16_PATIENCE = 20


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

    What is not finite on one rank is so on all: they skip the same steps and fail together.

    ``patience`` steps in a row that are not finite are a failure: 1 where nothing can help, more in fp16, where the
    scaler first gets to lower its scale. Once failed, every later step is told to skip too, so that the weights are
    still those before the failure when the host gets to :meth:`failure`, some steps later.
    """

    def __init__(self, device: torch.device, patience: int):
        self.patience = patience
        self.streak = torch.zeros((), device=device)  # grows for ever once it has reached patience
        self._record: Tensor | None = None  # [values..., step] of the latest step, of the failing one once failed
        self._names: list[str] = []

    def skip(self, values: dict[str, Tensor], step: Tensor) -> Tensor:
        """1 to skip the update, else 0, as a 0-dim tensor. ``values`` are 0-dim, "total" and "grad_norm" among them.

        What is kept from step to step is written in place, where a replayed step finds it.
        """
        self._names = list(values)
        now = torch.stack([*values.values(), step.double()])
        failed = self.streak >= self.patience
        if self._record is None:
            self._record = torch.empty_like(now)
        self._record.copy_(torch.where(failed, self._record, now))
        broken = ~torch.isfinite(values["total"] + values["grad_norm"])
        skip = failed | (distributed.all_max(broken.float()) > 0)
        self.streak.add_(1).mul_(skip)
        return skip.float()

    def failure(self) -> tuple[dict[str, float], int] | None:
        """The values that are not finite, on whichever rank, and their step; None while all is well.

        Waits for the device, and on failure for the other ranks.
        """
        if self._record is None or self.streak < self.patience:
            return None
        *values, step = self._record.tolist()
        named = zip(self._names, values, strict=True)
        found: dict[str, float] = {}
        for theirs in distributed.gather({name: value for name, value in named if not math.isfinite(value)}):
            found = theirs | found
        return found, int(step)


class BufferSnapshot:
    """The buffers of ``module`` as they were before a step, to undo what a forward pass wrote into them.

    BatchNorm's running statistics are updated in the forward pass, long before anyone knows that the batch overflowed.
    Buffers of one dtype are handled as one tensor: a few kernels a step instead of some for each buffer.
    """

    def __init__(self, module: nn.Module):
        buffers = list(module.buffers())
        dtypes = dict.fromkeys(buffer.dtype for buffer in buffers)
        self._groups = [[buffer for buffer in buffers if buffer.dtype == dtype] for dtype in dtypes]
        self._saved: list[Tensor] = []

    def take(self) -> None:
        """Remember the buffers' present values."""
        self._saved = [_flat(group) for group in self._groups]

    def restore_if(self, condition: Tensor) -> None:
        """Put the remembered values back where ``condition`` (0-dim bool) holds, without asking the host."""
        for group, saved in zip(self._groups, self._saved, strict=True):
            chosen = torch.where(condition, saved, _flat(group)).split([buffer.numel() for buffer in group])
            torch._foreach_copy_(group, [part.view(buffer.shape) for part, buffer in zip(chosen, group, strict=True)])


def _flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])
