"""Time and memory of steps that are compared: in turns, so that a slow moment of the machine hits them all."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

Step = Callable[[], object]


TURN_MS = 20.0
"""How long an implementation runs before it is the next one's turn: long enough to be in its own caches mostly."""


@dataclass(frozen=True)
class Timing:
    """Quantiles of the time of one call, in microseconds, over n samples."""

    n: int
    p20: float
    p50: float
    p80: float


def interleaved(steps: dict[str, Step], *, turns: int = 50, device: str = "cpu") -> dict[str, Timing]:
    """Each step in turn, `turns` times, each time for about `TURN_MS` after one call that does not count."""
    calls = {name: max(1, round(TURN_MS / 1e3 / min(_seconds(step, 5, device)))) for name, step in steps.items()}
    samples: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(turns):
        for name, step in steps.items():
            step()
            samples[name] += _seconds(step, calls[name], device)
    return {name: _timing([1e6 * seconds for seconds in times]) for name, times in samples.items()}


def _seconds(step: Step, calls: int, device: str) -> list[float]:
    """Time of each call; on a GPU, whose queue would be drained between them, of their mean."""
    if device == "cuda":
        return [_one(lambda: [step() for _ in range(calls)], device) / calls]
    return [_one(step, device) for _ in range(calls)]


def _one(call: Callable[[], object], device: str) -> float:
    _synchronize(device)
    start = time.perf_counter()
    call()
    _synchronize(device)
    return time.perf_counter() - start


def _synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _timing(times: list[float]) -> Timing:
    p20, _, _, p80 = statistics.quantiles(times, n=5)
    return Timing(len(times), p20, statistics.median(times), p80)


def peak_memory(step: Step, device: str = "cpu") -> int:
    """Bytes that a step has allocated at its worst moment, its results included."""
    step()
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step()
    changes = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = lowest = peak = 0
    for event in sorted(changes, key=lambda event: event.start_ns()):
        held += event.nbytes()
        lowest = min(lowest, held)  # a step begins by freeing the gradients of the one before
        peak = max(peak, held - lowest)
    return peak
