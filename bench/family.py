"""The suite of a family of kernels: time, memory and launches of every implementation, case by case."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench import chart, record
from bench.cases import note_on, of_family
from bench.cases.case import Case, Step
from bench.measure import TURN_MS, Effort, cost, interleaved
from bench.record import Row
from bench.replay import CALLS, Replay, replayed

COLUMNS = ("case", "implementation", "p20 us", "p50 us", "p80 us", "n", "times eager (p50)", "by turns", "peak KiB")
SLOW = "CRD"
SECONDS_A_CASE, SECONDS_TO_COMPILE = (2.5, 11.0), (4.0, 11.0)
"""Seconds of a case, and those that torch.compile adds, on bench.progress.REFERENCE; second those of a slow case."""
SECONDS_TO_START, SECONDS_TO_START_COMPILER = 4.0, 8.0


@dataclass(frozen=True)
class Kernels:
    """The suite of one family."""

    family: str

    def header(self, device: str) -> str:
        names = [*COLUMNS, "kernels launched" if device == "cuda" else "ops dispatched", "share of copy bandwidth"]
        rule = ["---", "---", *["---:"] * (len(names) - 2)]
        return "\n".join(f"| {' | '.join(cells)} |" for cells in (names, rule))

    def line(self, row: Row) -> str:
        if "error" in row:
            return record.failed(row)
        times = [f"{row[key]:.1f}" for key in ("p20", "p50", "p80")]
        share = "" if row["bandwidth_share"] is None else f"{row['bandwidth_share']:.2f}"
        memory = f"{row['peak_bytes'] / 1024:,.0f}"
        counts = [row["n"], f"{row['ratio']:.1f}", record.interval(row), memory, row["launches"], share]
        name = row["implementation"] + ("\\*" if row.get("graph") is False else "")
        return f"| {' | '.join(map(str, [row['case'], name, *times, *counts]))} |"

    def expected(self, effort: Effort, device: str) -> float:
        """Return about how many seconds the family takes."""
        cases = [case.name for case in of_family(self.family, large=effort.large) if effort.wants(case.name)]
        slow = sum(name.startswith(SLOW) for name in cases)
        parts = [(SECONDS_TO_START, *SECONDS_A_CASE)]
        parts += [(SECONDS_TO_START_COMPILER, *SECONDS_TO_COMPILE)] if effort.compile else []
        return sum(start + (len(cases) - slow) * each + slow * slow_each for start, each, slow_each in parts)

    def measure(self, about: dict[str, Any], effort: Effort) -> Iterator[Row]:
        for case in of_family(self.family, large=effort.large):
            if not effort.wants(case.name):
                continue
            try:
                yield from measure_case(case, about["device"], effort, 1e9 * about["copy GB/s"])
            except Exception as error:  # for example too little memory: the next case may need less
                yield {"case": case.name, "implementation": "ours", "error": first_line(error)}

    def write(self, name: str, about: dict[str, Any], rows: list[Row], folder: Path) -> None:
        """Write the record under ``folder``: rows, page and picture."""
        sample = "the mean of a turn's calls" if about["device"] == "cuda" else "a call each"
        how = (
            f"float32 unless a case says otherwise; {record.facts(about)}. Forward and backward. Implementations take "
            f"turns of {TURN_MS:g} ms; n counts samples, {sample}. {record.ending(about)}`eager` is the authors' code, "
            "`compile` the same under torch.compile, `reference` ours in plain PyTorch. Peak is the memory allocated "
            "during a call, results included. The share of the copy bandwidth is that of the bytes that must move; "
            "above 1, caches hold them."
        )
        how = " ".join(filter(None, (how, GRAPHS if about.get("graphs") else "", note_on(self.family))))
        text = [f"# {self.family}", "", how, "", f"![{self.family}]({name}.png)", "", self.header(about["device"])]
        record.save(name, about, rows, [*text, *map(self.line, rows)], folder)
        chart.draw(folder / f"{name}.png", self.family, about, rows)


GRAPHS = (
    f"Times are those of a CUDA graph of {CALLS} calls, divided by {CALLS}. An implementation with a star waits for "
    "the host, which no graph can, so Python called it."
)


def measure_case(case: Case, device: str, effort: Effort, bandwidth: float) -> Iterator[Row]:
    """Yield a row for each implementation. ``bandwidth`` is in bytes per second."""
    steps = case.steps(device)
    steps = {name: steps[name] for name in effort.chosen(steps)}
    failures: dict[str, str] = {}
    if effort.compile and isinstance(steps["eager"], Step):
        try:
            steps = {"eager": steps["eager"], "compile": compiled(steps["eager"]), **steps}
        except Exception as error:  # no compiler, or code that torch.compile can't compile: measure the others
            failures["compile"] = first_line(error)
    graphs: dict[str, Replay | None] = {}
    if effort.graphs:
        for step in steps.values():
            step()
        graphs = {name: replayed(step) for name, step in steps.items()}
    timed = {name: graphs.get(name) or step for name, step in steps.items()}
    times = interleaved(timed, turns=effort.turns, seconds=effort.seconds, within=effort.within, device=device)
    for name, spread in times.items():
        yield {
            "case": case.name,
            "implementation": name,
            **spread.row(),
            "ratio": round(times["eager"].p50 / spread.p50, 3),
            **spread.interval(),
            **dataclasses.asdict(cost(steps[name], device)),
            "bandwidth_share": share(case, spread.p50, bandwidth),
            **({"graph": graphs[name] is not None} if effort.graphs else {}),
        }
    for name, error in failures.items():
        yield {"case": case.name, "implementation": name, "error": error}


def compiled(eager: Step) -> Step:
    """Return the authors' loss under torch.compile, already compiled."""
    torch._dynamo.reset()  # the cases share code and would reach the limit of recompilations
    step = dataclasses.replace(eager, loss=torch.compile(eager.loss, dynamic=False))
    step()
    return step


def share(case: Case, microseconds: float, bandwidth: float) -> float | None:
    """Return the bandwidth of the necessary bytes as a part of a copy's. Above 1 if caches hold them."""
    if case.bytes_moved is None:
        return None
    return round(case.bytes_moved / (microseconds / 1e6) / bandwidth, 3)


def first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"[:200]
