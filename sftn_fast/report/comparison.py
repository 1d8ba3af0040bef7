"""Comparison of several runs: the settings that differ, and the results."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sftn_fast.experiment.labels import LABELS, kind, label
from sftn_fast.experiment.settings import read_settings
from sftn_fast.report.results import BEST, KL, SECONDS, TOP1, Column, Row, read_results
from sftn_fast.report.statistics import Paired, mean_and_deviation, paired, signed
from sftn_fast.report.terminal import Cells, bullets, text_table

IRRELEVANT = ("output", "resume")
"""Settings that say where a run is stored, not what it computes."""
QUANTITIES = (TOP1, BEST, KL, SECONDS)


def compare(folders: Sequence[Path], width: int | None = None) -> str:
    """Return the settings in which the runs in ``folders`` differ, and their results, as text.

    For two runs there is a column with the difference, second minus first, paired by seed.

    Args:
        folders: Folders of runs.
        width: Columns of text; None for no limit.

    Raises:
        ConfigError: One of the runs has no finished training.
    """
    names = _short_names(folders)
    runs = [{row.name: row for row in read_results(folder)} for folder in folders]
    settings = [dict(_flat(read_settings(folder))) for folder in folders]
    parts = [_settings_part(names, settings, width)]
    for column in QUANTITIES:
        cells = _results(names, runs, column)
        if len(cells) > 1:
            parts.append(text_table(cells, width))
    parts.append(bullets(_remarks(names, runs), width))
    return "\n\n".join(part for part in parts if part) + "\n"


def _short_names(folders: Sequence[Path]) -> list[str]:
    """Return the last parts of each path, as many as are needed to tell the paths apart."""
    paths = [folder.resolve() for folder in folders]
    for count in range(1, max(len(path.parts) for path in paths) + 1):
        names = [str(Path(*path.parts[-count:])) for path in paths]
        if len(set(names)) == len(set(paths)):
            break
    return names


def _flat(settings: dict[str, Any], group: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{group}{key}.")
        else:
            yield f"{group}{key}", value


def _settings_part(names: Sequence[str], settings: Sequence[dict[str, Any]], width: int | None) -> str:
    missing = [name for name, known in zip(names, settings, strict=True) if not known]
    if missing:
        return f"no settings of {', '.join(missing)}: config.yaml is missing or damaged"
    keys = [key for key in dict.fromkeys(key for each in settings for key in each) if key not in IRRELEVANT]
    rows = [[key, *(_shown(each, key) for each in settings)] for key in keys]
    differing = [row for row in rows if len(set(row[1:])) > 1]
    return text_table([["setting", *names], *differing], width) if differing else "the settings are the same"


def _shown(settings: dict[str, Any], key: str) -> str:
    if key not in settings:
        return "-"
    value = settings[key]
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _results(names: Sequence[str], runs: Sequence[dict[str, Row]], column: Column) -> Cells:
    """Return a table with a row for each kind of network and a column for each run."""
    jobs = dict.fromkeys(name for run in runs for name, row in run.items() if row.values(column))
    order = list(LABELS)
    pair = len(runs) == 2
    cells = [[column.heading, *names, *([f"{names[1]} - {names[0]}"] if pair else [])]]
    for job in sorted(jobs, key=lambda name: order.index(kind(name))):
        by_seed = [run[job].by_seed(column) if job in run else {} for run in runs]
        figures = [_figure(list(each.values()), column) for each in by_seed]
        difference = [_difference(paired(by_seed[1], by_seed[0]), column)] if pair else []
        cells.append([label(job), *figures, *difference])
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


def _remarks(names: Sequence[str], runs: Sequence[dict[str, Row]]) -> list[str]:
    remarks = ["Mean ± SD over n seeds"]
    if len(runs) == 2:
        remarks[0] += "; differences paired by seed, with 95 % CI (Student's t)"
    data = [_data_of(run) for run in runs]
    differing = [
        key
        for key in dict.fromkeys(key for each in data for key in each)
        if len({str(each.get(key)) for each in data}) > 1
    ]
    named = [key for key in differing if key != "content"]
    for key in named:
        values = ", ".join(f"{name} {each.get(key)}" for name, each in zip(names, data, strict=True))
        remarks.append(f"The data differ in {key}: {values}")
    if differing and not named:
        remarks.append("The images differ, although their numbers are equal")
    return remarks


def _data_of(run: dict[str, Row]) -> dict[str, Any]:
    """Return what the results record about their images."""
    found: dict[str, Any] = {}
    for row in run.values():
        for result in row.results:
            found |= result.get("identity", {}).get("data") or {}
    return found
