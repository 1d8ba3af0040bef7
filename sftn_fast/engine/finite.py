"""Checks for losses and gradients that are not finite: made on the device, read by the host when it asks."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from sftn_fast.engine import distributed

# Halvings in a row that take the scaler from its initial 2^16 to below one. Scaling can't help then.
FP16_PATIENCE = 20


class NonFiniteError(FloatingPointError):
    """A loss or gradient is not finite. Nothing was updated with it.

    Attributes:
        terms: the values that are not finite, by name.
        step: the step that computed them, counted from 1 as in the log.
    """

    def __init__(self, terms: dict[str, float], step: int, where: str):
        values = ", ".join(f"{name} = {value}" for name, value in terms.items())
        super().__init__(
            f"not finite: {values} at {where}; stopped before the update, the last checkpoint is untouched"
        )
        self.terms = terms
        self.step = step


class FiniteWatch:
    """Check of each step's total loss and gradient norm, on the device and without waiting for it.

    If a value is not finite on one rank, all ranks skip the step and fail together.

    ``patience`` steps in a row that are not finite are a failure: 1 normally, more in fp16, where the scaler first
    lowers its scale. After a failure every later step is skipped too. The weights are then still those before the
    failure when the host calls :meth:`failure` some steps later.
    """

    def __init__(self, device: torch.device, patience: int):
        self.patience = patience
        self.streak = torch.zeros((), device=device)  # keeps growing once it has reached patience
        self._record: Tensor | None = None  # [values..., step] of the latest step, or of the one that failed
        self._names: list[str] = []

    def skip(self, values: dict[str, Tensor], step: Tensor) -> Tensor:
        """Return 1 to skip the update, else 0, as a 0-dim tensor.

        State is written in place, so that a replayed step finds it.

        Args:
            values: 0-dim tensors by name, including "total" and "grad_norm".
            step: number of the step, 0-dim.
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
        """Return the values that are not finite on any rank, and their step; None if there is no failure.

        Waits for the device and, after a failure, for the other ranks.
        """
        if self._record is None or self.streak < self.patience:
            return None
        *values, step = self._record.tolist()
        named = zip(self._names, values, strict=True)
        found: dict[str, float] = {}
        for theirs in distributed.gather({name: value for name, value in named if not math.isfinite(value)}):
            found = theirs | found
        return found, int(step)


class Snapshot:
    """Copy of ``tensors``, all on one device, before something writes into them, to undo that.

    A network's forward pass updates BatchNorm's running statistics, long before an overflow is detected. Tensors of one
    dtype are handled as one: a few kernels per step instead of some for each tensor.
    """

    def __init__(self, tensors: Iterable[Tensor]):
        known = list(tensors)
        dtypes = dict.fromkeys(tensor.dtype for tensor in known)
        self._groups = [[tensor for tensor in known if tensor.dtype == dtype] for dtype in dtypes]
        self._saved: list[Tensor] = []

    def take(self) -> None:
        """Save the current values."""
        self._saved = [_flat(group) for group in self._groups]

    def restore_if(self, condition: Tensor) -> None:
        """Restore the saved values if ``condition`` (0-dim bool) is true, without waiting for the device."""
        for group, saved in zip(self._groups, self._saved, strict=True):
            chosen = torch.where(condition, saved, _flat(group)).split([tensor.numel() for tensor in group])
            torch._foreach_copy_(group, [part.view(tensor.shape) for part, tensor in zip(chosen, group, strict=True)])


def _flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().flatten() for tensor in tensors])
