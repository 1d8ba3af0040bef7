"""The fastest number of CPU threads, found by measuring: in small networks, threads cost more than they gain."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import torch

from sftn_fast.engine import distributed
from sftn_fast.engine.protocols import Batch
from sftn_fast.engine.step import TrainStep

AVAILABLE = torch.get_num_threads()  # torch's own choice, before anyone changes it
TIMED_STEPS = 3
WORTHWHILE = 0.05  # share of time that more threads must save


def fastest_threads(train_step: TrainStep, batch: Batch) -> int:
    """Return the fastest number of threads for ``train_step``, measured by steps on ``batch`` that are rolled back.

    Tries 1, 2, 4 and so on up to torch's own choice, and that choice. Over several ranks all measure at the same time
    and use the main rank's answer. Prints the measurements. The caller sets the number in torch.
    """
    choices = [number for number in (2**power for power in range(20)) if number < AVAILABLE] + [AVAILABLE]
    with train_step.rollback():
        seconds = [_seconds_a_step(train_step, batch, threads) for threads in choices]
    chosen: int = distributed.gather(_fewest(choices, seconds))[0]
    found = ", ".join(
        f"{threads}: {len(batch.index) / taken:.0f}" for threads, taken in zip(choices, seconds, strict=True)
    )
    distributed.say(f"engine.threads: {chosen} (images a second with {found})")
    return chosen


def _fewest(choices: Sequence[int], seconds: Sequence[float]) -> int:
    """Return the smallest of ``choices`` that is about as fast as the best."""
    return next(
        choice for choice, taken in zip(choices, seconds, strict=True) if taken * (1 - WORTHWHILE) <= min(seconds)
    )


def _seconds_a_step(train_step: Callable[[Batch, int], object], batch: Batch, threads: int) -> float:
    """Return the median seconds of some steps, after a first one that starts the threads."""
    torch.set_num_threads(threads)
    taken = []
    for _ in range(1 + TIMED_STEPS):
        start = time.perf_counter()
        train_step(batch, 0)
        taken.append(time.perf_counter() - start)
    return statistics.median(taken[1:])
