"""The tables of README.md and docs/benchmarks.md, written from the records: `python -m bench.readme`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.cases import FAMILIES
from bench.gpu import page
from bench.record import RESULTS, Row, read
from bench.tables import ByCase, by_case, duration, markdown, memory

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

Conditions = dict[str, Any]


def kernels(folder: Path) -> str:
    """Return the README's table of losses: a row for each case in ``SHOWN``, and where they were measured."""
    shown = []
    for places, cases in _losses(folder):
        found = {case: cases[case] for case in SHOWN if case in cases}
        if found:
            shown.append(_losses_table(found, places))
    return "\n\n".join(shown)


def losses(folder: Path) -> str:
    """Return the cases of all families of losses, a table for each machine and day that measured them."""
    return "\n\n".join(_losses_table(cases, place) for place, cases in _losses(folder))


def steps(folder: Path) -> str:
    """Return the table of whole steps of training, a row for each case, and where they were measured."""
    conditions, rows = read("training-cpu", folder)
    names = ["a whole step", "usual loop, images/s", "ours, images/s", "times as fast", "memory, theirs / ours"]
    lines = [
        [
            case,
            f"{found['eager']['images_per_second']:.0f}",
            f"{found['ours']['images_per_second']:.0f}",
            f"**{found['ours']['ratio']:.2f}**",
            memory(found),
        ]
        for case, found in by_case(rows).items()
        if "ours" in found
    ]
    return f"{markdown(names, lines)}\n\nMedians; {_where(conditions)}."


def loaders(folder: Path) -> str:
    """Return the table of the loaders of image files, and where they were measured."""
    conditions, rows = read("loaders-cpu", folder)
    names = ["loader", "images/s", "times as fast", "epochs measured"]
    lines = [[row["loader"], f"{row['p50']:.0f}", f"**{row['ratio']:.2f}**", str(row["n"])] for row in rows]
    return f"{markdown(names, lines)}\n\nMedians; {_where(conditions)}."


def limits(folder: Path) -> str:
    """Return a list of the recorded cases in which the gain is smallest, and of those that cost more memory."""
    gains = sorted((_gain(found), case) for _, cases in _losses(folder) for case, found in cases.items())
    whole = by_case(read("training-cpu", folder)[1])
    trained = {case: found for case, found in whole.items() if "ours" in found}
    heavier = [
        f"{case}, {memory(found)}"
        for case, found in trained.items()
        if found["ours"]["peak_bytes"] > found["eager"]["peak_bytes"]
    ]
    smallest = "; ".join(f"{case} {gain:.1f}" for gain, case in gains[:SMALLEST_GAINS])
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


def _losses(folder: Path) -> list[tuple[str, ByCase]]:
    """Return all cases, by where they were measured."""
    by_place: dict[str, ByCase] = {}
    for family in FAMILIES:
        about, rows = read(f"{family}-cpu", folder)
        by_place.setdefault(_where(about), {}).update(by_case(rows))
    return list(by_place.items())


def _losses_table(cases: ByCase, place: str) -> str:
    names = ["forward + backward, float32", "authors' code", "torch.compile", "ours", "times as fast"]
    lines = []
    for case, found in cases.items():
        compiled = duration(found["compile"]["p50"]) if "compile" in found else "-"
        ours = found["ours"]
        times = [duration(found["eager"]["p50"]), compiled, duration(ours["p50"]), f"**{ours['ratio']:.1f}**"]
        lines.append([case, *times, memory(found)])
    what = "Medians of single calls; times as fast as the authors' code"
    return f"{markdown([*names, 'memory, theirs / ours'], lines)}\n\n{what}; {place}."


def _gain(found: dict[str, Row]) -> float:
    others = [found[name]["p50"] for name in ("eager", "compile") if name in found]
    return float(min(others) / found["ours"]["p50"])


def _level(about: Conditions) -> str:
    # Kernels without a switch used the machine's highest level, as PyTorch did.
    return str(about.get("level", about["simd"].lower()))


def _where(about: Conditions) -> str:
    return (
        f"{about['threads']} threads of {about['processor']} at level {_level(about)}, torch {about['torch']}, "
        f"{about['date']}"
    )


def refresh() -> None:
    """Write the marked sections of all pages again."""
    for path in PAGES:
        path.write_text(refreshed(path.read_text()))
        print(f"{path}: tables refreshed", file=sys.stderr)


if __name__ == "__main__":
    refresh()
