"""The best epoch of a run: which one it is, and the network as it was after it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class BestEpoch:
    """An epoch with the network after it.

    Attributes:
        row: the epoch's row of metrics.
        weights: the network's state, on the CPU.
    """

    row: dict[str, Any]
    weights: dict[str, Tensor]

    @classmethod
    def of(cls, row: dict[str, Any], model: nn.Module) -> BestEpoch:
        """Return ``row`` with a copy of the weights of ``model``. Waits for the device."""
        return cls(row, {name: tensor.detach().to("cpu", copy=True) for name, tensor in model.state_dict().items()})


def judge_of(history: Sequence[Mapping[str, Any]]) -> str:
    """Return the metric that decides which epoch is the best: ``val_top1``, or ``test_top1`` if nothing is held out."""
    return "val_top1" if any("val_top1" in row for row in history) else "test_top1"


def best_row(history: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Return the row of the highest accuracy, the earliest of equal ones; None if no accuracy is a finite number."""
    judge = judge_of(history)
    rows = [row for row in history if math.isfinite(row.get(judge, math.nan))]
    return max(rows, key=lambda row: row[judge], default=None)
