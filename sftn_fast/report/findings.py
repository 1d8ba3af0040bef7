"""Plain sentences on what a run with one method shows of distillation and of SFTN."""

from __future__ import annotations

from collections.abc import Sequence

from sftn_fast.experiment.labels import label
from sftn_fast.report.results import TOP1, Row
from sftn_fast.report.statistics import Paired, paired, signed

QUESTIONS = (
    ("Distillation", "distill-teacher", "student"),
    ("SFTN", "distill-sftn", "distill-teacher"),
)
"""What is judged, the job that should be better for it, and the baseline of that job."""


def findings(rows: Sequence[Row]) -> list[str]:
    """Return a sentence for each of ``QUESTIONS`` whose two jobs have a seed in common."""
    top1 = {row.name: row.by_seed(TOP1) for row in rows}
    differences = [
        (subject, better, baseline, paired(top1.get(better, {}), top1.get(baseline, {})))
        for subject, better, baseline in QUESTIONS
    ]
    return [
        f"{subject} {_verdict(difference)}: {_compared(label(better), label(baseline), difference)}"
        for subject, better, baseline, difference in differences
        if difference
    ]


def _verdict(difference: Paired) -> str:
    if difference.n == 1:
        return "can't be judged by one seed"
    if difference.interval is None:
        return "can't be judged by equal differences"
    low, high = difference.interval
    return "helps here" if low > 0 else "does harm here" if high < 0 else "shows no clear effect"


def _compared(better: str, baseline: str, difference: Paired) -> str:
    points = signed(difference.mean)
    how = "better than" if difference.mean > 0 else "worse than"
    apart = f"{points.lstrip('+-')} points {how}" if points != "0.00" else "as good as"
    sentence = f"{better} is {apart} {baseline}"
    if difference.interval is None:
        return sentence
    low, high = difference.interval
    where = "above 0" if low > 0 else "below 0" if high < 0 else "around 0"
    return f"{sentence}, and the 95 % CI, {signed(low)} to {signed(high)}, is {where}"
