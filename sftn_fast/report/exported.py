"""Sentences on best epochs and averages: how epochs were chosen, and which weights the exported student has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from sftn_fast.experiment.best_epoch import IN_WORDS, chosen_by, is_choice
from sftn_fast.experiment.kinds import KINDS
from sftn_fast.experiment.labels import LABELS
from sftn_fast.experiment.settings import LONGEST
from sftn_fast.report.results import Row
from sftn_fast.report.statistics import mean_and_deviation
from sftn_fast.utils import run_files
from sftn_fast.utils.checksummed import DamagedError, read_sealed
from sftn_fast.utils.text import printable


def choices(row: Row) -> set[str]:
    """Return in which ways the best epochs of ``row`` were chosen; empty where that is not known."""
    return {choice for result in row.results if (choice := chosen_by(result)) is not None}


def choice_sentences(rows: Mapping[str, Sequence[Row]]) -> list[str]:
    """Return a sentence on how best epochs were chosen, or one for each way that names its ``rows``, by their names."""
    names: dict[str, list[str]] = {}
    for name, each in rows.items():
        for choice in dict.fromkeys(choice for row in each for choice in sorted(choices(row))):
            names.setdefault(choice, []).append(name)
    of = {choice: f" of {', '.join(named)}" if len(names) > 1 else "" for choice, named in names.items()}
    return [f"Top-1 best{of[choice]} is that of the best epoch, {IN_WORDS[choice]}" for choice in names]


def average_sentences(rows: Sequence[Row]) -> list[str]:
    """Return a sentence on each teacher of ``rows`` that teaches by the average of its weights."""
    sentences = []
    for row in rows:
        found = [result["ema"]["top1"] for result in row.results if "ema" in result]
        if found and row.name in KINDS and KINDS[row.name].teaches:
            top1 = f"top-1 {mean_and_deviation(found, 2)} %, n = {len(found)}"
            sentences.append(
                f"The {LABELS[row.name]} teaches by the average (EMA) of its weights, {top1}; agreement, KL and CKA of "
                "its students are to that"
            )
    return sentences


def student_sentences(folder: Path) -> list[str]:
    """Return a sentence on the exported student of the run in ``folder``, unless it is simply of the last epoch."""
    if not (folder / run_files.STUDENT).is_dir():
        return []
    try:
        meta = read_sealed(folder / run_files.STUDENT / run_files.NETWORK[1]).get("meta")
    except DamagedError as error:
        return [f"{error}; run the training command again to export the student again"]
    if not isinstance(meta, dict) or not ("ema_decay" in meta or is_choice(meta.get("chosen_by"))):
        return []
    what, epoch = (printable(str(meta.get(key)), LONGEST) for key in ("trained_as", "epoch"))
    top1 = f", top-1 {meta['top1']:.2f} %" if isinstance(meta.get("top1"), int | float) else ""
    if "ema_decay" in meta:
        return [f"The exported student ({what}) has the average (EMA) of its weights after epoch {epoch}{top1}"]
    return [f"The exported student ({what}) is of its best epoch, {epoch}{top1}, {IN_WORDS[meta['chosen_by']]}"]
