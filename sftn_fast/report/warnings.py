"""Warnings about trainings whose results are doubtful or worthless."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from sftn_fast.experiment.class_accuracy import only_class
from sftn_fast.experiment.labels import label
from sftn_fast.report.results import Row


def warnings(rows: Sequence[Row]) -> list[str]:
    """Return a sentence for each training that diverged or learned nothing, and for each doubt about its teacher."""
    return [
        f"warning: {label(row.name)}, seed {result['seed']}: {fault}"
        for row in rows
        for result in row.results
        for fault in _faults(result)
    ]


def _faults(result: dict[str, Any]) -> Iterator[str]:
    if result.get("diverged"):
        yield result["diverged"]
    yield from result.get("doubts") or []
    if only := only_class(result):
        yield only
