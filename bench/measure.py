"""Time and memory of steps that are compared: in turns, so that a slow moment of the machine hits them all."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

Step = Callable[[], object]


@dataclass(frozen=True)
class Timing:
    """Quantiles of the time of one call, in microseconds, over n samples."""

    n: int
    p20: float
    p50: float
    p80: float


def interleaved(
    steps: dict[str, Step], *, rounds: int = 50, sample_ms: float = 3.0, device: str = "cpu"
) -> dict[str, Timing]:
    """Each step in turn, `rounds` times; a sample is the mean over as many calls as fill `sample_ms`."""
    calls = {name: max(1, round(sample_ms / 1e3 / _seconds(step, 3, device))) for name, step in steps.items()}
    samples: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            samples[name].append(1e6 * _seconds(step, calls[name], device))
    return {name: _timing(times) for name, times in samples.items()}


def _seconds(step: Step, calls: int, device: str) -> float:
    step()  # back into the caches
    _synchronize(device)
    start = time.perf_counter()
    for _ in range(calls):
        step()
    _synchronize(device)
    return (time.perf_counter() - start) / calls


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
