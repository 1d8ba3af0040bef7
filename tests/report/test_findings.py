"""What a report says in plain words of distillation and of SFTN."""

from __future__ import annotations

from pathlib import Path

import pytest
from finished_jobs import add_job

from sftn_fast import report
from sftn_fast.report.findings import findings

DISTILLATION = {
    "helps": (
        (70.0, 71.0, 72.0),
        (74.0, 75.5, 75.5),
        "Distillation helps here: student of standard teacher 75.00 %, student alone 71.00 %, "
        "difference +4.00 points (95 % CI +2.76 to +5.24, above 0)",
    ),
    "harms": (
        (74.0, 75.5, 75.5),
        (70.0, 71.0, 72.0),
        "Distillation does harm here: student of standard teacher 71.00 %, student alone 75.00 %, "
        "difference -4.00 points (95 % CI -5.24 to -2.76, below 0)",
    ),
    "unclear": (
        (70.0, 71.0, 72.0),
        (71.0, 70.5, 73.0),
        "Distillation shows no clear effect: student of standard teacher 71.50 %, student alone 71.00 %, "
        "difference +0.50 points (95 % CI -1.65 to +2.65, around 0)",
    ),
    "one seed": (
        (70.0,),
        (75.0,),
        "Distillation can't be judged by one seed: student of standard teacher 75.00 %, student alone 70.00 %, "
        "difference +5.00 points",
    ),
    "equal differences": (
        (70.0, 71.0),
        (70.0, 71.0),
        "Distillation can't be judged by equal differences: student of standard teacher 70.50 %, student alone "
        "70.50 %, difference 0.00 points",
    ),
}
"""Top-1 of the student alone and of the standard teacher's, one figure per seed, and the sentence on them."""


@pytest.mark.parametrize("case", DISTILLATION)
def test_distillation_is_judged_in_one_sentence(case: str, tmp_path: Path) -> None:
    alone, taught, sentence = DISTILLATION[case]
    for seed, figures in enumerate(zip(alone, taught, strict=True)):
        for name, top1 in zip(("student", "distill-teacher"), figures, strict=True):
            add_job(tmp_path, name, seed, top1)
    assert findings(report.read_results(tmp_path)) == [sentence]
    assert report.write(tmp_path).endswith(f"\n- {sentence}\n")
    assert f"- {sentence}\n" in (tmp_path / "report.md").read_text()


def test_sftn_is_judged_against_the_standard_teachers_student(tmp_path: Path) -> None:
    for seed, (standard, sftn) in enumerate(((80.0, 79.0), (81.0, 79.5), (82.0, 81.0))):
        add_job(tmp_path, "distill-teacher", seed, standard)
        add_job(tmp_path, "distill-sftn", seed, sftn)
    (sentence,) = findings(report.read_results(tmp_path))
    assert sentence.startswith(
        "SFTN does harm here: student of SFTN teacher 79.83 %, student of standard teacher 81.00 %, "
    )


def test_several_methods_are_judged_by_their_table_alone(folder: Path) -> None:
    assert findings(report.read_results(folder)) == []
