"""Sentences on best epochs: how they were chosen, and whether the exported student is of one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sftn_fast.experiment.best_epoch import CONSEQUENCE, chosen_by, is_choice
from sftn_fast.report.results import Row
from sftn_fast.utils import run_files
from sftn_fast.utils.checksummed import DamagedError, read_sealed
from sftn_fast.utils.text import printable

LONGEST = 300
"""Characters shown of a text from a file."""


def choice_sentences(rows: Sequence[Row]) -> list[str]:
    """Return a sentence on how the best epochs of ``rows`` were chosen, or several if they were chosen differently."""
    found = {chosen_by(result): None for row in rows for result in row.results}
    return [
        f"Top-1 best: after the epoch that is best on the {choice}{CONSEQUENCE[choice]}"
        for choice in found
        if choice is not None
    ]


def student_sentences(folder: Path) -> list[str]:
    """Return a sentence on the exported student of the run in ``folder`` if it is of a best epoch, or is damaged."""
    if not (folder / run_files.STUDENT).is_dir():
        return []
    try:
        meta = read_sealed(folder / run_files.STUDENT / run_files.NETWORK[1]).get("meta")
    except DamagedError as error:
        return [f"{error}; run the training command again to export the student again"]
    if not isinstance(meta, dict) or not is_choice(meta.get("chosen_by")):
        return []
    choice, epoch, top1 = meta["chosen_by"], meta.get("epoch"), meta.get("top1")
    figure = f": top-1 {top1:.2f} %" if isinstance(top1, int | float) else ""
    what = printable(str(meta.get("trained_as", "student")), LONGEST)
    of = f"epoch {printable(str(epoch), LONGEST)}, the best on the {choice}{CONSEQUENCE[choice]}"
    return [f"Exported: {what}{figure} after {of}"]
