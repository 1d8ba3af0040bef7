"""Sentences on best epochs: how they were chosen, and whether the exported student is of one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sftn_fast.experiment.best_epoch import IN_WORDS, chosen_by, is_choice
from sftn_fast.experiment.settings import LONGEST
from sftn_fast.report.results import Row
from sftn_fast.utils import run_files
from sftn_fast.utils.checksummed import DamagedError, read_sealed
from sftn_fast.utils.text import printable


def choice_sentences(rows: Sequence[Row]) -> list[str]:
    """Return a sentence on how the best epochs of ``rows`` were chosen, or several if they were chosen differently."""
    found = dict.fromkeys(chosen_by(result) for row in rows for result in row.results)
    return [f"Top-1 best is that of the best epoch, {IN_WORDS[choice]}" for choice in found if choice is not None]


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
    what, epoch = (printable(str(meta.get(key)), LONGEST) for key in ("trained_as", "epoch"))
    top1 = f", top-1 {meta['top1']:.2f} %" if isinstance(meta.get("top1"), int | float) else ""
    return [f"The exported student ({what}) is of its best epoch, {epoch}{top1}, {IN_WORDS[meta['chosen_by']]}"]
