"""Comparison of several runs: the settings that differ, the results, and their differences from the first run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sftn_fast.experiment.labels import LABELS, kind, label
from sftn_fast.experiment.settings import flat
from sftn_fast.report.compared_runs import ComparedRun, read_runs
from sftn_fast.report.exported import choice_sentences, choices
from sftn_fast.report.results import BEST, KL, SECONDS, TOP1, Column
from sftn_fast.report.statistics import (
    FEWEST_TESTED,
    Paired,
    confidence_interval,
    format_p,
    holm,
    mean_and_deviation,
    paired,
    signed,
)
from sftn_fast.report.terminal import Cells, bullets, text_table
from sftn_fast.utils.text import escape

IRRELEVANT = ("output", "resume")
"""Settings that say where a run is stored, not what it computes."""
QUANTITIES = (TOP1, BEST, KL, SECONDS)
CHECKSUMS = ("content", "files")
"""What the identity of a job records about its images that says nothing to people."""
NOT_OF_TESTS = (SECONDS,)
"""Quantities that runs on different test images may be compared in."""


def compare(folders: Sequence[Path], width: int | None = None) -> str:
    """Return the settings in which the runs in ``folders`` differ, and their results, as text.

    The differences from the first run are paired by seed. There are none between runs that were tested on different
    images.

    Args:
        folders: Folders of runs.
        width: Columns of text; None for no limit.

    Raises:
        ConfigError: Fewer than two different runs have a finished training.
    """
    runs, left_out = read_runs(folders)
    return describe_runs(runs, [f"left out: {sentence}" for sentence in left_out], width)


def describe_runs(runs: Sequence[ComparedRun], remarks: Sequence[str] = (), width: int | None = None) -> str:
    """Return the comparison of ``runs`` as text, with ``remarks`` at its end."""
    parts = [_settings_part(runs, width)]
    for column in QUANTITIES:
        cells = _results(runs, column)
        if len(cells) > 1:
            parts.append(text_table(cells, width))
        if column is TOP1:
            tables = (_intervals(runs), _differences(runs))
            parts += [text_table(cells, width) for cells in tables if len(cells) > 1]
    parts.append(bullets([*_remarks(runs), *remarks], width))
    return "\n\n".join(part for part in parts if part) + "\n"


def jobs_of(runs: Sequence[ComparedRun]) -> list[str]:
    """Return the names of the jobs that any of the runs has finished, in the order of the tables."""
    order = list(LABELS)
    return sorted(dict.fromkeys(name for run in runs for name in run.rows), key=lambda name: order.index(kind(name)))


def _settings_part(runs: Sequence[ComparedRun], width: int | None) -> str:
    missing = [run.name for run in runs if not run.settings]
    if missing:
        return f"no settings of {escape(', '.join(missing))}: config.yaml is missing or damaged"
    settings = [{key: value for key, value in flat(run.settings).items() if value != {}} for run in runs]
    keys = [key for key in dict.fromkeys(key for each in settings for key in each) if key not in IRRELEVANT]
    rows = [[key, *(_shown(each, key) for each in settings)] for key in keys]
    differing = [row for row in rows if len(set(row[1:])) > 1]
    names = [run.name for run in runs]
    return text_table([["setting", *names], *differing], width) if differing else "the settings are the same"


def _shown(settings: dict[str, Any], key: str) -> str:
    if key not in settings:
        return "-"
    value = settings[key]
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _results(runs: Sequence[ComparedRun], column: Column) -> Cells:
    """Return a table with a row for each kind of network and a column for each run; of two runs, their difference."""
    names = [run.name for run in runs]
    pair = len(runs) == 2 and (column in NOT_OF_TESTS or runs[1].has_same_tests(runs[0]))
    cells = [[column.heading, *names, *([f"{names[1]} - {names[0]}"] if pair else [])]]
    for job in jobs_of(runs):
        by_seed = [_by_seed(run, job, column) for run in runs]
        if any(by_seed):
            figures = [_figure(list(each.values()), column) for each in by_seed]
            same = column is not BEST or _chosen_alike(runs, job)
            difference = [_difference(paired(by_seed[1], by_seed[0]) if same else None, column)] if pair else []
            cells.append([label(job), *figures, *difference])
    return cells


def _chosen_alike(runs: Sequence[ComparedRun], job: str) -> bool:
    """Return whether all runs chose the best epoch of ``job`` in the same way. One on the test images is optimistic."""
    rows = [run.rows[job] for run in runs if job in run.rows]
    return all(choices(row) == choices(rows[0]) for row in rows)


def _by_seed(run: ComparedRun, job: str, column: Column) -> dict[int, float]:
    return run.rows[job].by_seed(column) if job in run.rows else {}


def _intervals(runs: Sequence[ComparedRun]) -> Cells:
    """Return a table of the confidence intervals of the mean top-1; only headings if no run has two seeds."""
    cells = [[f"{TOP1.heading}, 95 % CI", *(run.name for run in runs)]]
    for job in jobs_of(runs):
        found = [confidence_interval(list(_by_seed(run, job, TOP1).values())) for run in runs]
        if any(found):
            cells.append([label(job), *(f"{each[0]:.2f} to {each[1]:.2f}" if each else "-" for each in found)])
    return cells


def _differences(runs: Sequence[ComparedRun]) -> Cells:
    """Return a table of the differences in top-1 from the first run, paired by seed."""
    first, *others = runs
    found = [
        (f"{label(job)}, {run.name} - {first.name}", difference)
        for job in jobs_of(runs)
        for run in others
        if run.has_same_tests(first)
        and (difference := paired(_by_seed(run, job, TOP1), _by_seed(first, job, TOP1))) is not None
    ]
    cells = [["difference in top-1 last", "points", "95 % CI", "p (Holm)", "n"]]
    for (name, difference), p in zip(found, holm([each.p for _, each in found]), strict=True):
        interval = " to ".join(map(signed, difference.interval)) if difference.interval else "-"
        cells.append([name, str(difference), interval, "-" if p is None else format_p(p), str(difference.n)])
    return cells


def _figure(values: Sequence[float], column: Column) -> str:
    text = mean_and_deviation(values, column.digits)
    return f"{text} (n = {len(values)})" if values else text


def _difference(difference: Paired | None, column: Column) -> str:
    if difference is None:
        return "-"
    if column not in (TOP1, BEST):
        return f"{difference.mean:+.{column.digits}f}"
    interval = f" ({' to '.join(map(signed, difference.interval))})" if difference.interval else ""
    return signed(difference.mean) + interval


def _remarks(runs: Sequence[ComparedRun]) -> list[str]:
    first, *others = runs
    same = [run for run in others if run.has_same_tests(first)]
    remarks = ["Mean ± SD over n seeds. 95 % CI: Student's t"]
    if same:
        remarks.append(
            f"Differences are paired by seed. p: two-sided paired t-test, n >= {FEWEST_TESTED}, Holm-corrected for all "
            "differences in the table"
        )
    if same and len(_differences(runs)) == 1:
        remarks.append("No differences: no two runs have finished the same training for the same seed")
    for run in others:
        if run not in same:
            remarks.append(f"{run.name} - {first.name}: no difference, because they were tested on different images")
    unlike = [label(job) for job in jobs_of(runs) if not _chosen_alike(runs, job)]
    if len(runs) == 2 and same and unlike:
        remarks.append(
            f"{others[0].name} - {first.name}: no difference in top-1 best of {', '.join(unlike)}, because "
            "the best epochs were not chosen in the same way"
        )
    remarks += choice_sentences({run.name: list(run.rows.values()) for run in runs})
    remarks += [f"{run.name}: {note}" for run in runs for note in run.notes]
    return remarks + _data_remarks(runs)


def _data_remarks(runs: Sequence[ComparedRun]) -> list[str]:
    """Return a sentence for each property in which the runs' images differ."""
    data = [run.data for run in runs]
    differing = [
        key
        for key in dict.fromkeys(key for each in data for key in each)
        if len({str(each.get(key)) for each in data}) > 1
    ]
    named = [key for key in differing if key not in CHECKSUMS]
    remarks = []
    for key in named:
        values = ", ".join(f"{run.name} {each.get(key)}" for run, each in zip(runs, data, strict=True))
        remarks.append(f"The data differ in {key}: {values}")
    if differing and not named:
        remarks.append("The images differ, although their numbers are equal")
    return remarks
