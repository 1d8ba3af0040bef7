"""Measures the cases of a family: every implementation's time, memory and launches, as rows of a table."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from bench.cases import of_family
from bench.cases.case import Case, Step
from bench.measure import Timing, cost, interleaved

Row = dict[str, Any]


@dataclass(frozen=True)
class Effort:
    """How long to measure, and what."""

    turns: int
    seconds: float  # a case may take, roughly
    compile: bool


def measure(family: str, device: str, effort: Effort, bandwidth: float, report: Callable[[Row], None]) -> list[Row]:
    """Every case of a family; each row is also handed to ``report`` as soon as there is one."""
    rows = []
    for case in of_family(family):
        for row in measure_case(case, device, effort, bandwidth):
            rows.append(row)
            report(row)
    return rows


def measure_case(case: Case, device: str, effort: Effort, bandwidth: float) -> Iterator[Row]:
    steps = case.steps(device)
    failures: dict[str, str] = {}
    if effort.compile:
        try:
            steps = {"eager": steps["eager"], "compile": compiled(steps["eager"]), **steps}
        except Exception as error:  # no compiler, or code that torch.compile cannot take: the others go on
            failures["compile"] = first_line(error)
    for step in steps.values():
        step()
    timings = interleaved(dict(steps), turns=effort.turns, seconds=effort.seconds, device=device)
    for name, timing in timings.items():
        yield {
            "case": case.name,
            "implementation": name,
            **{key: round(value, 2) for key, value in dataclasses.asdict(timing).items()},
            "ratio": round(timings["eager"].p50 / timing.p50, 3),
            **dataclasses.asdict(cost(steps[name], device)),
            "bandwidth_share": share(case, timing, bandwidth),
        }
    for name, error in failures.items():
        yield {"case": case.name, "implementation": name, "error": error}


def compiled(eager: Step) -> Step:
    """The authors' loss under torch.compile, with the compilation behind it."""
    torch._dynamo.reset()  # else the cases, which share their code, would use up the limit of recompilations
    step = dataclasses.replace(eager, loss=torch.compile(eager.loss, dynamic=False))
    for _ in range(2):
        step()
    return step


def share(case: Case, timing: Timing, bandwidth: float) -> float | None:
    """What part of a copy's bandwidth the bytes that must move make; above 1 where caches hold them."""
    if case.bytes_moved is None:
        return None
    return round(case.bytes_moved / (timing.p50 / 1e6) / bandwidth, 3)


def first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"[:200]
