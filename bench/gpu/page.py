"""The pages' sections about GPUs, written from the records of sessions. Without a record they say so."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.cases import FAMILIES
from bench.record import Row, read
from bench.tables import ByCase, by_case, duration, markdown, memory

BEFORE = (
    "**Status: no GPU has run it yet.** All figures here are from CPUs. The CUDA kernels compile with nvcc and pass "
    "the tests\nin an emulator on the CPU, which says nothing about their speed."
)
NONE = "No GPU has run the CUDA kernels yet, so this page has no figure of a GPU."
KINDS = {
    "-graph": "replays of CUDA graphs",
    "-graph-peers": "replays of CUDA graphs, with torch.compile",
    "-large-graph": "tensors beyond the L2 cache and half precision, replays of CUDA graphs",
    "": "the plain loop, in which Python launches every kernel",
}
"""Ends of the records' names, and what these measure."""


def status(folder: Path) -> str:
    """Return what the README says of GPUs: the outcome of the last first run, or of a second one alone."""
    runs = (folder / f"session-cuda-{run}.json" for run in ("first", "second"))
    recorded = next((path for path in runs if path.exists()), None)
    if recorded is None:
        return BEFORE
    session = json.loads(recorded.read_text())
    about, outcomes = session["conditions"], {outcome["name"]: outcome for outcome in session["outcomes"]}
    said = (
        f"{name}: {outcomes[name]['result']}, {outcomes[name]['detail']}"
        for name in ("table", "tests", "memcheck", "racecheck")
        if name in outcomes
    )
    place = f"{about.get('processor', 'a GPU')} with driver {about.get('driver')} on {session['date']}"
    checks = "; ".join(said) or "Their results were not compared there"
    return f"**Status: the CUDA kernels have run on {place}.** {checks}. [Benchmarks](docs/benchmarks.md) has figures."


def measured(folder: Path) -> str:
    """Return the tables of losses and of whole steps on a GPU, and where they were measured."""
    return "\n\n".join([*_losses(folder), *_steps(folder)]) or NONE


def _recorded(name: str, folder: Path) -> tuple[dict[str, Any], list[Row]]:
    try:
        return read(name, folder)
    except FileNotFoundError:
        return {}, []


def _losses(folder: Path) -> Iterator[str]:
    for end, what in KINDS.items():
        records = [_recorded(f"{family}-cuda{end}", folder) for family in FAMILIES]
        places = dict.fromkeys(_place(about) for about, rows in records if rows)
        cases = by_case(row for _, rows in records for row in rows if "error" not in row)
        lines = list(_loss_lines(cases))
        if lines:
            names = ["forward + backward", "authors' code", "torch.compile", "Liger", "ours", "times as fast"]
            yield f"{what[0].upper()}{what[1:]}; {'; '.join(places)}."
            yield markdown([*names, "memory, theirs / ours"], lines)
            if any(row.get("graph") is False for found in cases.values() for row in found.values()):
                yield "\\* waits for the host, so no graph can hold it: called from Python."


def _loss_lines(cases: ByCase) -> Iterator[list[str]]:
    for case, found in cases.items():
        if "eager" in found and "ours" in found:
            times = [_time(found.get(name)) for name in ("eager", "compile", "liger", "ours")]
            yield [case, *times, f"**{found['ours']['ratio']:.1f}**", memory(found)]


def _time(row: Row | None) -> str:
    if row is None:
        return "-"
    return duration(row["p50"]) + ("\\*" if row.get("graph") is False else "")


def _steps(folder: Path) -> Iterator[str]:
    for name in ("training-cuda", "training-cuda-more"):
        about, rows = _recorded(name, folder)
        lines = [
            [row["case"], row["implementation"], f"{row['images_per_second']:.0f}", f"**{row['ratio']:.2f}**"]
            for row in rows
            if "images_per_second" in row
        ]
        if lines:
            yield f"Whole steps; {_place(about)}. `eager` is the usual loop, {about['torch']} without torch.compile."
            names = ["a whole step", "implementation", "images/s", "times as fast as `eager`"]
            yield markdown(names, lines).replace("|---|---:|", "|---|---|", 1)


def _place(about: dict[str, Any]) -> str:
    return f"{about['processor']}, driver {about.get('driver')}, torch {about['torch']}, {about['date']}"
