"""Sentences on what makes a stage's figures doubtful or worthless."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from sftn_fast.experiment.class_counts import only_class
from sftn_fast.experiment.labels import label
from sftn_fast.report.results import Row


def warnings(rows: Sequence[Row]) -> list[str]:
    """Return a sentence for each stage that diverged or learned nothing, and for each doubt about a given teacher."""
    return [
        f"warning: {label(row.name)}, seed {result['seed']}: {line}"
        for row in rows
        for result in row.results
        for line in _faults(result)
    ]


def _faults(result: dict[str, Any]) -> Iterator[str]:
    if result.get("diverged"):
        yield result["diverged"]
    yield from result.get("doubts") or []
    if only := only_class(result):
        yield only
