"""Running means of the terms on the device, and where the host's time goes."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

WINDOW, EPOCH, RUN = "window", "epoch", "run"


class Meter:
    """Sums of the steps' terms, since the last line of the log and since the start of the epoch.

    They stay on the device in float64; only :meth:`read` waits for it. Skipped steps don't enter the means.
    """

    _ROWS = (WINDOW, EPOCH)

    def __init__(self, device: torch.device):
        self._device = device
        self._names: list[str] = []
        self._sums: Tensor | None = None  # [2, terms + 2]: sums of the terms, steps counted, steps skipped

    def add(self, terms: dict[str, Tensor]) -> None:
        """Add a step's terms, "skipped" (0 or 1) the last of them."""
        *values, skipped = terms.values()
        kept = torch.where(skipped > 0, 0, torch.stack(values)).double()
        row = torch.cat([kept, torch.stack([1 - skipped, skipped]).double()])
        if self._sums is None:
            self._names = list(terms)[:-1]
            self._sums = torch.zeros(len(self._ROWS), len(row), dtype=torch.float64, device=self._device)
        self._sums += row

    def read(self, span: str) -> dict[str, float]:
        """Mean of each term over ``span`` and the number of steps "skipped" in it; starts the span anew."""
        if self._sums is None:
            return {"skipped": 0.0}
        row = self._sums[self._ROWS.index(span)]
        *sums, steps, skipped = row.tolist()
        row.zero_()
        means = {name: total / steps if steps else math.nan for name, total in zip(self._names, sums, strict=True)}
        return {**means, "skipped": skipped}

    def state_dict(self) -> dict[str, Any]:
        """Names and sums."""
        return {"names": self._names, "sums": self._sums}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave."""
        self._names = state["names"]
        self._sums = None if state["sums"] is None else state["sums"].to(self._device)


@dataclass
class _Span:
    images: int = 0
    seconds: float = 0.0
    waited: float = 0.0


class Stopwatch:
    """Images a second and the share of time spent waiting for data, over a window, an epoch and the run.

    Counts the steps, the log and checkpoints between them, not the evaluations. :meth:`lap` belongs behind a read from
    the device: before it, the work is only queued.
    """

    def __init__(self) -> None:
        self._spans = {WINDOW: _Span(), EPOCH: _Span(), RUN: _Span()}
        self._mark = 0.0

    def batches(self, batches: Iterable[Any], *, ranks: int = 1) -> Iterator[Any]:
        """Pass ``batches`` through, timing how long each is waited for; the clock runs from here to the next lap."""
        iterator = iter(batches)
        self._mark = time.perf_counter()
        while True:
            asked = time.perf_counter()
            batch = next(iterator, None)
            waited = time.perf_counter() - asked
            for span in self._spans.values():
                span.waited += waited
                span.images += 0 if batch is None else len(batch.images) * ranks
            if batch is None:
                return
            yield batch

    def lap(self) -> None:
        """Account for the time since the last lap."""
        now = time.perf_counter()
        for span in self._spans.values():
            span.seconds += now - self._mark
        self._mark = now

    def read(self, span: str) -> dict[str, float]:
        """``images_per_second``, ``data_wait`` (0 to 1), ``seconds`` of ``span``; starts it anew, but for the run's."""
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
        """What the spans hold."""
        return {name: asdict(span) for name, span in self._spans.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave."""
        self._spans = {name: _Span(**values) for name, values in state.items()}
