"""The tables of README.md and docs/benchmarks.md, written from the records: `python -m bench.readme`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bench import levels
from bench.cases import FAMILIES
from bench.gpu import page
from bench.record import RESULTS, Row, by_level, read
from bench.tables import by_case, duration, markdown, memory

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", ROOT / "docs" / "benchmarks.md")
SHOWN = (
    "KD + CE (64, 100)",
    "SFTN, 3 branches (64, 100)",
    "CRD and its negatives, N 50,000",
    "RKD (64, 128)",
    "BatchNorm + ReLU + MSE (64, 64, 32, 32)",
    "OH (64, 64, 32, 32)",
)
"""Cases of the README's table: 64 images of CIFAR's size. docs/benchmarks.md has all cases."""
SMALLEST_GAINS = 5
"""Losses listed where the gain is smallest."""

BUSY = 2.0
"""Load for each thread from which on a table says that the machine had other work. Below, it may be the benchmark's."""

Conditions = dict[str, Any]
ByLevel = dict[str, dict[str, Row]]
"""Rows of a case by level of vector instructions, in ascending order, and implementation."""


@dataclass
class Table:
    """Cases that one machine measured at the same levels."""

    machine: str
    levels: tuple[str, ...]
    cases: dict[str, ByLevel] = field(default_factory=dict)
    conditions: list[Conditions] = field(default_factory=list)


def kernels(folder: Path) -> str:
    """Return the README's table of losses: a row for each case in ``SHOWN``, and where they were measured.

    All are of one machine, the one that measured most of them, and there at most levels.
    """
    tables = [
        replace(table, cases={case: table.cases[case] for case in SHOWN if case in table.cases})
        for table in _losses(folder)
    ]
    return _losses_table(max(tables, key=lambda table: (len(table.cases), len(table.levels))))


def losses(folder: Path) -> str:
    """Return the cases of all families of losses, a table for each machine that measured them."""
    return "\n\n".join(map(_losses_table, _losses(folder)))


def steps(folder: Path) -> str:
    """Return the table of whole steps of training, a row for each case, and where they were measured."""
    conditions, rows = read("training-cpu", folder)
    layers = list(next((row["shares"] for row in rows if "shares" in row), ()))
    names = ["a whole step", "usual loop, images/s", "ours, images/s", "times as fast", "memory, theirs / ours"]
    names += [" / ".join(layers) + " in ours"] if layers else []
    lines = [
        [
            case,
            f"{found['eager']['images_per_second']:.0f}",
            f"{found['ours']['images_per_second']:.0f}",
            f"**{found['ours']['ratio']:.2f}**",
            memory(found),
            *([" / ".join(f"{share:.0%}" for share in found["ours"].get("shares", {}).values())] if layers else []),
        ]
        for case, found in by_case(rows).items()
        if _measured(found)
    ]
    return f"{markdown(names, lines)}\n\nMedians; {_where([conditions])}."


def loaders(folder: Path) -> str:
    """Return the table of the loaders of image files, and where they were measured."""
    conditions, rows = read("loaders-cpu", folder)
    names = ["loader", "images/s", "times as fast", "epochs measured"]
    lines = [[row["loader"], f"{row['p50']:.0f}", f"**{row['ratio']:.2f}**", str(row["n"])] for row in rows]
    return f"{markdown(names, lines)}\n\nMedians; {_where([conditions])}."


def host(folder: Path) -> str:
    """Return the table of small losses beside a function that computes nothing, and where they were measured."""
    conditions, rows = read("host-cpu", folder)
    found: dict[tuple[str, int], dict[str, Row]] = {}
    for row in rows:
        found.setdefault((row["case"], row["threads"]), {})[row["autograd"]] = row
    autograd = list(dict.fromkeys(row["autograd"] for row in rows))
    names = ["forward + backward, float32", "threads", "empty"]
    names += [name for of in autograd for name in (f"ours, autograd in {of}", "ratio")]
    lines = []
    for (case, threads), by in found.items():
        cells = [case, str(threads), duration(by[autograd[0]]["empty"]["p20"])]
        for of in autograd:
            cells += [duration(by[of]["ours"]["p20"]), f"**{by[of]['ratio']:.2f}**"]
        lines.append(cells)
    return f"{markdown(names, lines)}\n\n20th percentiles; {_where([conditions])}."


def limits(folder: Path) -> str:
    """Return a list of the recorded cases in which the gain is smallest, and of those that cost more memory."""
    gains = sorted(
        (_gain(found), f"{case} at {level}")
        for table in _losses(folder)
        for case, by in table.cases.items()
        for level, found in by.items()
    )
    whole = by_case(read("training-cpu", folder)[1])
    trained = {case: found for case, found in whole.items() if _measured(found)}
    heavier = [
        f"{case}, {memory(found)}"
        for case, found in trained.items()
        if found["ours"]["peak_bytes"] > found["eager"]["peak_bytes"]
    ]
    smallest = "; ".join(f"{case}, {gain:.1f}" for gain, case in gains[:SMALLEST_GAINS])
    step, found = min(trained.items(), key=lambda item: item[1]["ours"]["ratio"])
    lines = [
        "Losses with the smallest gain over the faster of the authors' code and torch.compile, as times as fast: "
        f"{smallest}.",
        f"Whole step with the smallest gain: {step}, {found['ours']['ratio']:.2f} times as fast.",
        f"Whole steps that need more memory than the usual loop, theirs / ours: {'; '.join(heavier) or 'none'}.",
    ]
    return "\n".join(f"- {line}" for line in lines)


SECTIONS: dict[str, Callable[[Path], str]] = {
    "kernels": kernels,
    "losses": losses,
    "steps": steps,
    "loaders": loaders,
    "host": host,
    "limits": limits,
    "status": page.status,
    "gpu": page.measured,
}
"""Functions that write a page's section between its two marks."""


def marks(section: str) -> tuple[str, str]:
    """Return the lines before and behind the text of ``section`` on a page."""
    return f"<!-- {section}: written by python -m bench.readme -->", f"<!-- end of {section} -->"


def refreshed(text: str, folder: Path = RESULTS) -> str:
    """Return a page's ``text`` with each of its marked sections as recorded in ``folder``.

    Raises:
        FileNotFoundError: A section has no record.
        ValueError: A section begins and does not end, or stands there twice.
    """
    for section, write in SECTIONS.items():
        begin, end = marks(section)
        if begin in text:
            before, rest = text.split(begin)
            _, after = rest.split(end)
            text = f"{before}{begin}\n\n{write(folder)}\n\n{end}{after}"
    return text


def _losses(folder: Path) -> list[Table]:
    """Return all cases. Level default is left out of cases that the same machine measured at a higher one, too."""
    measured: dict[tuple[str, str], ByLevel] = {}
    conditions: dict[tuple[str, str], list[Conditions]] = {}
    for family in FAMILIES:
        for level, (about, rows) in by_level(family, folder).items():
            for case, found in by_case(rows).items():
                if _measured(found):
                    measured.setdefault((case, _machine(about)), {})[level] = found
                    conditions.setdefault((case, _machine(about)), []).append(about)
    tables: dict[tuple[str, tuple[str, ...]], Table] = {}
    for (case, machine), by in measured.items():
        shown = tuple(level for level in by if level in levels.BOTH) or tuple(by)
        table = tables.setdefault((machine, shown), Table(machine, shown))
        table.cases[case] = {level: by[level] for level in shown}
        table.conditions += [about for about in conditions[case, machine] if levels.of(about) in shown]
    return list(tables.values())


def _measured(found: dict[str, Row]) -> bool:
    """Return whether a case has what a table compares."""
    return all(name in found and "error" not in found[name] for name in ("eager", "ours"))


def _losses_table(table: Table) -> str:
    """Return a table with columns for each level. torch.compile has one where it was measured."""
    compiled = {
        level: any("p50" in by[level].get("compile", {}) for by in table.cases.values()) for level in table.levels
    }
    names = ["forward + backward, float32"]
    for level in table.levels:
        which = f"{level}: " if len(table.levels) > 1 else ""
        names += [f"{which}authors' code", *["torch.compile"] * compiled[level], "ours", "times as fast"]
    lines = []
    for case, by in table.cases.items():
        cells = [case]
        for level, found in by.items():
            shown = ["eager", *["compile"] * compiled[level], "ours"]
            cells += [duration(found[name]["p50"]) if "p50" in found.get(name, {}) else "-" for name in shown]
            cells.append(f"**{found['ours']['ratio']:.1f}**")
        lines.append([*cells, memory(by[table.levels[-1]])])
    what = "Medians of single calls; times as fast as the authors' code"
    return f"{markdown([*names, 'memory, theirs / ours'], lines)}\n\n{what}; {_where(table.conditions)}."


def _gain(found: dict[str, Row]) -> float:
    others = [found[name]["p50"] for name in ("eager", "compile") if "p50" in found.get(name, {})]
    return float(min(others) / found["ours"]["p50"])


def _machine(about: Conditions) -> str:
    threads = f"{about['threads']} thread{'s' * (about['threads'] != 1)}"
    return f"{threads} of {about['processor']}{_model(about)}, torch {about['torch']}"


def _model(about: Conditions) -> str:
    """Return which processor of a name it is: virtual machines call several generations the same."""
    return f" (family and model {about['family and model']})" if about.get("family and model") else ""


def _where(conditions: Sequence[Conditions]) -> str:
    """Return where and when one machine measured, and whether it had other work then."""
    first, *_, last = sorted(about["date"] for about in conditions) * 2
    at = [level for level in levels.ALL if level in map(levels.of, conditions)] or [levels.of(conditions[0])]
    threads, _, torch = _machine(conditions[0]).rpartition(", torch ")
    load = max(about.get("load", 0.0) for about in conditions)
    busy = f", beside other work (load {load})" if load > BUSY * conditions[0]["threads"] else ""
    when = first if first == last else f"{first} to {last}"
    return f"{threads} at level{'s' * (len(at) > 1)} {' and '.join(at)}, torch {torch}, {when}{busy}"


def refresh() -> None:
    """Write the marked sections of all pages again."""
    for path in PAGES:
        path.write_text(refreshed(path.read_text()))
        print(f"{path}: tables refreshed", file=sys.stderr)


if __name__ == "__main__":
    refresh()
