"""Cells and tables of the pages: Markdown, times, bytes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from bench.record import Row

ByCase = dict[str, dict[str, Row]]
"""Rows by case and implementation."""


def by_case(rows: Iterable[Row]) -> ByCase:
    """Return rows by case and implementation, in their order."""
    cases: ByCase = {}
    for row in rows:
        cases.setdefault(row["case"], {})[row["implementation"]] = row
    return cases


def markdown(names: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Return a table whose first column is text and whose others are numbers."""
    rule = f"|---|{'---:|' * (len(names) - 1)}"
    return "\n".join([f"| {' | '.join(names)} |", rule, *(f"| {' | '.join(line)} |" for line in lines)])


def memory(found: dict[str, Row]) -> str:
    return f"{size(found['eager']['peak_bytes'])} / {size(found['ours']['peak_bytes'])}"


def duration(microseconds: float) -> str:
    return f"{microseconds:.0f} us" if microseconds < 1000 else f"{microseconds / 1000:.1f} ms"


def size(count: float) -> str:
    return f"{count / 2**10:,.0f} KiB" if count < 2**20 else f"{count / 2**20:,.1f} MiB"
