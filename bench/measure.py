"""Time and cost of steps to compare. Steps take turns, so that a slow moment of the machine affects all of them."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd import DeviceType

Step = Callable[[], object]


TURN_MS = 20.0
"""Length of a turn: long enough for an implementation to run mostly from its own caches."""

MIN_TURNS = 3
"""Least number of turns: quantiles of fewer samples are meaningless."""

CONFIDENCE = 0.95


FURTHER = ("reference", "ours, NCHW", "ours, compile")
"""Implementations of any suite that no table shows. They are measured on request."""


@dataclass(frozen=True)
class Effort:
    """How long to measure, which cases and implementations, and how."""

    turns: int
    seconds: float  # approximate time of a case
    compile: bool  # the authors' code under torch.compile too
    within: float = 0.0  # a case ends when all its ratios are known so well; 0 to take all turns
    further: bool = True  # implementations that no table shows, too
    graphs: bool = False  # replays of CUDA graphs instead of calls from Python
    large: bool = False  # the cases for a GPU: larger than its L2, and half precision
    cases: tuple[str, ...] = ()  # beginnings of names; empty for all
    implementations: tuple[str, ...] = ()  # empty for all

    def wants(self, case: str) -> bool:
        """Return whether to measure the case of this name."""
        return case.startswith(self.cases or "")

    def chosen(self, implementations: Iterable[str]) -> list[str]:
        """Return the names of the implementations to measure. "eager" is always among them: ratios refer to it."""
        wanted = [name for name in implementations if self.further or self.implementations or name not in FURTHER]
        return [name for name in wanted if name == "eager" or name in (self.implementations or (name,))]


@dataclass(frozen=True)
class Interval:
    """An interval of confidence for the median of some samples."""

    low: float
    high: float

    @classmethod
    def of(cls, samples: Sequence[float]) -> Interval | None:
        """Return the interval between two of the samples, which assumes no distribution, or None for fewer than six."""
        beyond, chance = 0, 0.0
        while True:  # the chance that the median lies below or above this many samples, at either end
            chance += 2 * math.comb(len(samples), beyond) / 2 ** len(samples)
            if chance > 1 - CONFIDENCE:
                break
            beyond += 1
        ordered = sorted(samples)
        return cls(ordered[beyond - 1], ordered[-beyond]) if beyond else None

    def within(self, part: float) -> bool:
        """Return whether the interval reaches no further than this part of its middle to either side."""
        return self.high - self.low <= part * (self.high + self.low)


@dataclass(frozen=True)
class Spread:
    """Quantiles of n samples, in the samples' unit.

    ``ratio`` is an interval for the time of the first implementation divided by the time of this one, turn by turn.
    """

    n: int
    p20: float
    p50: float
    p80: float
    ratio: Interval | None = None

    @classmethod
    def of(cls, samples: Sequence[float], ratio: Interval | None = None) -> Spread:
        # inclusive: the other method extrapolates below the least of three samples
        p20, _, _, p80 = statistics.quantiles(samples, n=5, method="inclusive")
        return cls(len(samples), p20, statistics.median(samples), p80, ratio)

    def row(self, digits: int = 2, *, scale: float = 1.0) -> dict[str, float]:
        """Return the entries for a table's row, in units of 1 / ``scale``."""
        return {"n": self.n, **{key: round(scale * getattr(self, key), digits) for key in ("p20", "p50", "p80")}}

    def interval(self) -> dict[str, list[float]]:
        """Return the entry for a table's row that says how well the ratio is known, if that was found out."""
        return {"interval": [round(self.ratio.low, 3), round(self.ratio.high, 3)]} if self.ratio else {}


def interleaved(
    steps: dict[str, Step],
    *,
    turns: int = 50,
    seconds: float = float("inf"),
    within: float = 0.0,
    device: str = "cpu",
) -> dict[str, Spread]:
    """Measure microseconds per call. Steps take turns, `turns` times, each for about `TURN_MS` after an uncounted call.

    A sample is a call. On a GPU it is the mean of a turn's calls, because timing each call would drain the queue. If
    all turns would take more than about `seconds`, there are fewer, but at least `MIN_TURNS`. There are fewer too
    if all is :func:`settled` before. A graph of several calls counts as these.
    """
    fastest = {name: _fastest(step, device) for name, step in steps.items()}
    calls = {name: max(1, round(TURN_MS / 1e3 / time)) for name, time in fastest.items()}
    uncounted = {name: int(calls[name] > 1) for name in steps}  # a call longer than a turn needs no warm-up
    one_turn = sum((calls[name] + uncounted[name]) * time for name, time in fastest.items())
    taken: dict[str, list[list[float]]] = {name: [] for name in steps}
    for _ in range(max(MIN_TURNS, int(min(turns, seconds / one_turn)))):
        for name, step in steps.items():
            for _ in range(uncounted[name]):
                step()
            taken[name].append(_seconds(step, calls[name], device))
        if settled(taken, within):
            break
    ratios = intervals(taken)
    each = {name: 1e6 / getattr(step, "calls", 1) for name, step in steps.items()}
    return {
        name: Spread.of([each[name] * seconds for turn in times for seconds in turn], ratios.get(name))
        for name, times in taken.items()
    }


def settled(taken: dict[str, list[list[float]]], within: float) -> bool:
    """Return whether after these turns the ratios of all implementations are known to `within` of their value."""
    found = intervals(taken) if within else {}
    return 0 < len(found) == len(taken) - 1 and all(interval.within(within) for interval in found.values())


def intervals(taken: dict[str, list[list[float]]]) -> dict[str, Interval]:
    """Return an interval for the time of the first implementation divided by that of each other one.

    ``taken`` has the samples of each turn. Of a turn counts the ratio of the medians, because what slows the machine
    for a moment slows all implementations of that turn. There is no interval after fewer than six turns.
    """
    (first, *others) = taken
    medians = {name: [statistics.median(turn) for turn in turns] for name, turns in taken.items()}
    found = {name: Interval.of([a / b for a, b in zip(medians[first], medians[name], strict=True)]) for name in others}
    return {name: interval for name, interval in found.items() if interval}


def _fastest(step: Step, device: str) -> float:
    """Return the time of the fastest of five calls, or of one call if it is slow."""
    first = _one(step, device)
    return first if first > 5 * TURN_MS / 1e3 else min(_seconds(step, 5, device))


def _seconds(step: Step, calls: int, device: str) -> list[float]:
    """Return the time of each call; on a GPU, only the mean."""
    if device == "cuda":
        return [_one(lambda: [step() for _ in range(calls)], device) / calls]
    return [_one(step, device) for _ in range(calls)]


def _one(call: Callable[[], object], device: str) -> float:
    synchronize(device)
    start = time.perf_counter()
    call()
    synchronize(device)
    return time.perf_counter() - start


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


@dataclass(frozen=True)
class Cost:
    """Cost of a call besides time. ``peak_bytes`` includes its results; :func:`cost` defines ``launches``."""

    peak_bytes: int
    launches: int


def cost(step: Step, device: str = "cpu") -> Cost:
    """Return the cost of one call of a step that has run before.

    ``launches`` counts kernel launches on a GPU, and the ops dispatched by Python and autograd on a CPU.
    """
    on_gpu = device == "cuda"
    activity = torch.profiler.ProfilerActivity
    activities = [activity.CPU, activity.CUDA] if on_gpu else [activity.CPU]
    if on_gpu:
        for leaf in getattr(step, "leaves", ()):  # free the gradients of the previous call
            leaf.grad = None
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
    with torch.profiler.profile(activities=activities, profile_memory=not on_gpu) as profile:
        step()
        synchronize(device)
    events = profile.profiler.kineto_results.events()
    if on_gpu:
        return Cost(torch.cuda.max_memory_allocated() - before, _kernels(events))
    return Cost(_peak(events), _dispatched(events))


def peak_memory(step: Step, device: str = "cpu") -> int:
    """Return the peak of bytes allocated by a step's second call, including its results."""
    step()
    return cost(step, device).peak_bytes


def _peak(events: list[Any]) -> int:
    held = lowest = peak = 0
    for event in sorted((e for e in events if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        held += event.nbytes()
        lowest = min(lowest, held)  # a step begins by freeing the gradients of the previous one
        peak = max(peak, held - lowest)
    return peak


def _kernels(events: list[Any]) -> int:
    on_device = [event for event in events if event.device_type() == DeviceType.CUDA]
    return sum(not (e.is_user_annotation() or e.name().startswith(("Memcpy", "Memset"))) for e in on_device)


def _dispatched(events: list[Any]) -> int:
    ops = [event for event in events if event.name().startswith(("aten::", "sftn_fast::"))]
    count, end = 0, -1
    for event in sorted(ops, key=lambda event: (event.start_ns(), -event.duration_ns())):
        if event.start_ns() >= end:  # not called by the previous op
            count, end = count + 1, event.end_ns()
    return count


def copy_bandwidth(device: str = "cpu", megabytes: int = 256) -> float:
    """Return the bytes per second, read and written, of a copy too large for caches."""
    source = torch.ones(megabytes * 2**18, device=device)
    target = torch.empty_like(source)
    target.copy_(source)
    best = min(_seconds(lambda: target.copy_(source), 7, device))
    return 2 * source.nbytes / best
