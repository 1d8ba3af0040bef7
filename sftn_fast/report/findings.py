"""Plain sentences on what a run with one method shows of distillation and of SFTN."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from sftn_fast.experiment.labels import label
from sftn_fast.report.results import TOP1, Row
from sftn_fast.report.statistics import Paired, paired, signed

QUESTIONS = (
    ("Distillation", "distill-teacher", "student"),
    ("SFTN", "distill-sftn", "distill-teacher"),
    ("A teacher of an earlier epoch", "distill-early", "distill-teacher"),
    ("SoTeacher", "distill-soteacher", "distill-teacher"),
)
"""What is judged, the job that should be better for it, and the baseline of that job."""


def findings(rows: Sequence[Row]) -> list[str]:
    """Return a sentence for each of ``QUESTIONS`` whose two jobs have a seed in common."""
    top1 = {row.name: row.by_seed(TOP1) for row in rows}
    sentences = []
    for subject, better, baseline in QUESTIONS:
        ours, theirs = top1.get(better, {}), top1.get(baseline, {})
        difference = paired(ours, theirs)
        if difference:
            seeds = ours.keys() & theirs.keys()
            reached = [
                f"{label(name)} {statistics.fmean(values[seed] for seed in seeds):.2f} %"
                for name, values in ((better, ours), (baseline, theirs))
            ]
            sentences.append(f"{subject} {_verdict(difference)}: {', '.join(reached)}, {_apart(difference)}")
    return sentences


def _verdict(difference: Paired) -> str:
    if difference.n == 1:
        return "can't be judged by one seed"
    if difference.interval is None:
        return "can't be judged by equal differences"
    low, high = difference.interval
    return "helps here" if low > 0 else "does harm here" if high < 0 else "shows no clear effect"


def _apart(difference: Paired) -> str:
    apart = f"difference {signed(difference.mean)} points"
    if difference.interval is None:
        return apart
    low, high = difference.interval
    where = "above 0" if low > 0 else "below 0" if high < 0 else "around 0"
    return f"{apart} (95 % CI {signed(low)} to {signed(high)}, {where})"
