"""The results of a run with several methods: for each method, the students of both teachers and the gain of SFTN."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sftn_fast.experiment.labels import kind, method_in
from sftn_fast.report.published import Published, of_method
from sftn_fast.report.results import TOP1, Column, Row
from sftn_fast.report.statistics import Paired, holm, paired

SOURCES = ("teacher", "sftn")
"""The two teachers: standard and student-friendly."""
RIVALS = ("early", "soteacher")
"""Other teachers that a run may have beside them."""


@dataclass(frozen=True)
class MethodLine:
    """The results of one method."""

    method: str
    students: dict[str, Row]
    """Its students by their teacher, one of ``SOURCES``."""
    gain: Paired | None
    """Top-1 of the SFTN teacher's students minus that of the standard teacher's, paired by seed."""
    p: float | None
    """p value of the gain, corrected for the number of methods."""
    published: Published | None
    """Published accuracy of the standard teacher's student."""

    @property
    def n(self) -> int:
        """Number of seeds: those that the students of both teachers have, or those of the only teacher."""
        return self.gain.n if self.gain else max(len(row.results) for row in self.students.values())

    @property
    def gap(self) -> float | None:
        """Mean top-1 of the standard teacher's students minus the published accuracy."""
        if self.published is None or "teacher" not in self.students:
            return None
        return statistics.fmean(self.students["teacher"].values(self.published.column)) - self.published.top1

    def values(self, source: str, column: Column) -> list[float]:
        """Return one quantity of one teacher's students; empty without such students."""
        return self.students[source].values(column) if source in self.students else []


def read_matrix(rows: Sequence[Row], settings: Mapping[str, Any]) -> list[MethodLine]:
    """Return the methods in the order of ``rows``; an empty list for a run with a single, unnamed method."""
    distilled = [row for row in rows if kind(row.name).startswith("distill-") and method_in(row.name)]
    students: dict[str, dict[str, Row]] = {}
    for row in distilled:
        students.setdefault(row.method, {})[kind(row.name).removeprefix("distill-")] = row
    gains = [_gain(by_source) for by_source in students.values()]
    corrected = holm([gain.p if gain else None for gain in gains])
    return [
        MethodLine(method, by_source, gain, p, of_method(method, settings))
        for (method, by_source), gain, p in zip(students.items(), gains, corrected, strict=True)
    ]


def sources_of(lines: Sequence[MethodLine]) -> list[str]:
    """Return the teachers to show: both of ``SOURCES``, and between them the rivals that have students."""
    rivals = [source for source in RIVALS if any(source in line.students for line in lines)]
    return [SOURCES[0], *rivals, SOURCES[1]]


def _gain(students: Mapping[str, Row]) -> Paired | None:
    if not set(SOURCES) <= students.keys():
        return None
    return paired(students["sftn"].by_seed(TOP1), students["teacher"].by_seed(TOP1))


def average_gain(lines: Sequence[MethodLine]) -> Paired | None:
    """Return the mean gain over the methods, paired by seed, on the seeds that all methods have."""
    by_source = [
        {source: line.students[source].by_seed(TOP1) for source in SOURCES} for line in lines if line.gain is not None
    ]
    if not by_source:
        return None
    seeds = sorted(set.intersection(*(set(each[source]) for each in by_source for source in SOURCES)))
    means = [statistics.fmean(each["sftn"][seed] - each["teacher"][seed] for each in by_source) for seed in seeds]
    return Paired(tuple(means)) if means else None
