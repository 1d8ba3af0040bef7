"""How many CPU threads a task trains fastest with, found by trying: small networks lose more by waiting for each other
than they gain."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from sftn_fast.engine import distributed
from sftn_fast.engine.step import TrainStep

AVAILABLE = torch.get_num_threads()  # torch's own choice, before anybody else's
TIMED_STEPS = 3
WORTHWHILE = 0.05  # less time, below which fewer threads are preferred


def fastest_threads(train_step: TrainStep, batch: Any) -> int:
    """The number of threads for ``train_step``, from steps on ``batch`` that leave no trace; prints what it found.

    Tries 1, 2, 4 and so on up to torch's own choice, and that. Over several ranks all try at once and take the main
    rank's answer. It is the caller who tells torch.
    """
    choices = [number for number in (2**power for power in range(20)) if number < AVAILABLE] + [AVAILABLE]
    with train_step.rehearsal():
        seconds = [_seconds_a_step(train_step, batch, threads) for threads in choices]
    chosen: int = distributed.gather(_fewest(choices, seconds))[0]
    found = ", ".join(
        f"{threads}: {len(batch.index) / taken:.0f}" for threads, taken in zip(choices, seconds, strict=True)
    )
    distributed.say(f"engine.threads: {chosen} (images a second with {found})")
    return chosen


def _fewest(choices: Sequence[int], seconds: Sequence[float]) -> int:
    """The smallest of ``choices`` that is as good as the best."""
    return next(
        choice for choice, taken in zip(choices, seconds, strict=True) if taken * (1 - WORTHWHILE) <= min(seconds)
    )


def _seconds_a_step(train_step: Callable[[Any, int], object], batch: Any, threads: int) -> float:
    """Median over some steps, behind a first one that wakes the threads."""
    torch.set_num_threads(threads)
    taken = []
    for _ in range(1 + TIMED_STEPS):
        start = time.perf_counter()
        train_step(batch, 0)
        taken.append(time.perf_counter() - start)
    return statistics.median(taken[1:])
