"""Running averages of a training: means of the loss terms, images a second, time spent waiting for data."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from sftn_fast.data.loaders import DeferredBatch
from sftn_fast.engine import distributed
from sftn_fast.engine.protocols import Batch

B = TypeVar("B", bound=Batch | DeferredBatch)

WINDOW, EPOCH, RUN = "window", "epoch", "run"


class AverageMeter:
    """Means of the loss terms over images, since the last log line and since the start of the epoch.

    A step's terms are means over its images. They are weighted by the number of images, so a smaller last batch counts
    less. Sums stay on the device in float64, and only :meth:`read` waits for it. Skipped steps don't count.
    """

    _ROWS = (WINDOW, EPOCH)

    def __init__(self, device: torch.device):
        self._device = device
        self._names: list[str] = []
        self._sums: Tensor | None = None  # [2, terms + 2]: terms summed over images, images counted, steps skipped

    def add(self, terms: dict[str, Tensor], images: int) -> None:
        """Add the terms of a step of ``images`` images. The last term is "skipped", 0 or 1."""
        *means, skipped = torch.stack(list(terms.values())).double().unbind()
        if self._sums is None:
            self._names = list(terms)[:-1]
            self._sums = torch.zeros(len(self._ROWS), len(means) + 2, dtype=torch.float64, device=self._device)
        counted = images * torch.stack([*means, torch.ones_like(skipped)])
        # Multiplying by 0 would keep a NaN.
        counted = torch.where(skipped > 0, 0, counted)
        self._sums += torch.cat([counted, skipped[None]])

    def read(self, span: str) -> dict[str, float]:
        """Return the means over ``span`` and all ranks, and the number of steps "skipped"; reset ``span``."""
        if self._sums is None:
            return {"skipped": 0.0}
        which = self._ROWS.index(span)
        *sums, images, skipped = distributed.all_sum(self._sums[which].clone()).tolist()
        self._sums[which] = 0
        means = {name: total / images if images else math.nan for name, total in zip(self._names, sums, strict=True)}
        return {**means, "skipped": skipped / distributed.world_size()}

    def state_dict(self) -> dict[str, Any]:
        """Return names and sums."""
        return {"names": self._names, "sums": None if self._sums is None else self._sums.cpu()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self._names = state["names"]
        self._sums = None if state["sums"] is None else state["sums"].to(self._device)


@dataclass
class _Span:
    images: int = 0
    seconds: float = 0.0
    waited: float = 0.0


class Stopwatch:
    """Images a second and the share of time spent waiting for data, over a window, an epoch and the run.

    It counts the steps and the logs and checkpoints between them, but not the evaluations. Call :meth:`lap` after
    reading from the device: before that, the work is only queued.
    """

    def __init__(self) -> None:
        self._spans = {WINDOW: _Span(), EPOCH: _Span(), RUN: _Span()}
        self._mark: float | None = None

    def batches(self, batches: Iterable[B], *, ranks: int = 1) -> Iterator[B]:
        """Yield ``batches`` and measure how long each one takes to arrive. The clock runs from here to :meth:`stop`."""
        iterator = iter(batches)
        self._mark = time.perf_counter()
        while True:
            asked = time.perf_counter()
            batch = next(iterator, None)
            waited = time.perf_counter() - asked
            for span in self._spans.values():
                span.waited += waited
                span.images += 0 if batch is None else len(batch.index) * ranks
            if batch is None:
                return
            yield batch

    def lap(self) -> None:
        """Add the time since the last lap, if the clock runs."""
        if self._mark is not None:
            now = time.perf_counter()
            for span in self._spans.values():
                span.seconds += now - self._mark
            self._mark = now

    def stop(self) -> None:
        """Add the time since the last lap and stop the clock."""
        self.lap()
        self._mark = None

    def read(self, span: str) -> dict[str, float]:
        """Return ``images_per_second``, ``data_wait`` (0 to 1) and ``seconds`` of ``span``; reset all but the run's."""
        counted = self._spans[span]
        if span != RUN:
            self._spans[span] = _Span()
        seconds = max(counted.seconds, 1e-9)
        return {
            "images_per_second": counted.images / seconds,
            "data_wait": counted.waited / seconds,
            "seconds": counted.seconds,
        }

    def state_dict(self) -> dict[str, Any]:
        """Return the counts of all spans."""
        return {name: asdict(span) for name, span in self._spans.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self._spans = {name: _Span(**values) for name, values in state.items()}
