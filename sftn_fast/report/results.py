"""Results and learning curves of the finished jobs in a run's folder."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sftn_fast.config import ConfigError
from sftn_fast.experiment.labels import LABELS, kind, method_in
from sftn_fast.experiment.plan import RESULT, places
from sftn_fast.experiment.settings import LONGEST, printable_tree, read_settings, settings_fault
from sftn_fast.utils import run_files
from sftn_fast.utils.checksummed import DamagedError, read_regular
from sftn_fast.utils.run_files import FILES
from sftn_fast.utils.text import counted, listed, printable

NAMED = 5
"""Largest number of unfinished jobs, or of notes in an error, that are listed."""


@dataclass(frozen=True)
class Column:
    """One quantity of a table: its heading, how to read it from a result, and the number of decimals."""

    heading: str
    value: Callable[[dict[str, Any]], float | None]
    digits: int = 2


TOP1 = Column("top-1 last %", lambda result: result["last"]["top1"])
BEST = Column("top-1 best %", lambda result: result["best"]["top1"])
AGREEMENT = Column("agreement %", lambda result: result["agreement"])
KL = Column("KL(teacher, student)", lambda result: result["kl"], digits=4)
CKA = Column("CKA", lambda result: result.get("cka"), digits=3)
CALIBRATION = Column("calibration error %", lambda result: result.get("calibration_error"))
SECONDS = Column("seconds", lambda result: result["seconds"], digits=1)
SPEED = Column("images/s", lambda result: result["images_per_second"], digits=0)
COST = Column("device seconds", lambda result: result["seconds"] * result.get("devices", 1), digits=1)

COLUMNS = (TOP1, BEST, AGREEMENT, KL, CKA)


@dataclass(frozen=True)
class Row:
    """The results of one job over all seeds."""

    name: str
    network: str
    results: tuple[dict[str, Any], ...]

    @property
    def method(self) -> str:
        """The losses in the notation of the configuration; empty for a job that does not distil."""
        return self.results[0].get("identity", {}).get("distill") or method_in(self.name)

    def values(self, column: Column) -> list[float]:
        """Return the quantity for each seed that has it."""
        return list(self.by_seed(column).values())

    def by_seed(self, column: Column) -> dict[int, float]:
        """Return the quantity by seed, for the seeds that have it."""
        values = ((result["seed"], column.value(result)) for result in self.results)
        return {seed: value for seed, value in values if value is not None}


@dataclass(frozen=True)
class Found:
    """The results in a run's folder, and remarks about other files there."""

    results: tuple[dict[str, Any], ...]
    remarks: tuple[str, ...]
    """A sentence for each item that is damaged or does not belong to the run."""
    unfinished: tuple[str, ...]
    """Jobs that have begun, as ``seed1/student``."""

    @property
    def notes(self) -> tuple[str, ...]:
        """All remarks, with one on the jobs that are not finished."""
        left_out = f"left out: {listed(self.unfinished, shown=NAMED)} (not finished)"
        return (*self.remarks, left_out) if self.unfinished else self.remarks


def read_results(folder: Path) -> list[Row]:
    """Return the results of the finished jobs in ``folder``, in the order of the table.

    Raises:
        ConfigError: No job there has finished.
    """
    return read_run(folder)[0]


def read_run(folder: Path) -> tuple[list[Row], list[str]]:
    """Return the same as :func:`read_results`, and remarks about damaged, copied and unfinished jobs.

    Raises:
        ConfigError: No job there has finished.
    """
    found = find_results(folder)
    notes = list(found.notes)
    if not found.results:
        more = [f"and {len(notes) - NAMED} more like these"] if len(notes) > NAMED else []
        raise ConfigError("; ".join([f"no finished training in {folder}{_why_none(folder)}", *notes[:NAMED], *more]))
    return rows_of(found, read_settings(folder)), notes


def rows_of(found: Found, settings: Mapping[str, Any]) -> list[Row]:
    """Return the results in ``found`` by job, in the order of the table."""
    results = sorted(found.results, key=lambda result: result["seed"])
    names = {result["name"] for result in results}
    rows = []
    for name in names:
        chosen = tuple(result for result in results if result["name"] == name)
        rows.append(Row(name, chosen[0]["network"], chosen))
    order, methods = list(LABELS), [str(method) for method in settings.get("methods") or ()]
    rows.sort(key=lambda row: (*_rank(row.method, methods, row), order.index(kind(row.name))))
    return rows


def _why_none(folder: Path) -> str:
    """Return why a path can't hold results, to be put behind it; empty for the folder of a run."""
    if not os.path.lexists(folder):
        return ", which does not exist"
    if not folder.is_dir():
        return ", which is not a folder"
    return "" if run_files.seed_folders(folder) else ", which is not the folder of a run: it has no seed folders"


def find_results(folder: Path) -> Found:
    """Read the results in ``folder`` and check every file of the finished jobs."""
    results, notes, unfinished, unchecked = [], [], [], 0
    for path in run_files.strangers(folder):
        notes.append(f"left out: {_name(path, folder)}, which is not a name that a run gives (a copy?)")
    others = foreign(folder)
    if others:
        notes.append(f"left out: {', '.join(others)} (not in config.yaml)")
    for job in run_files.job_folders(folder):
        if _name(job, folder) in others:
            continue
        if not (job / RESULT).exists():
            unfinished.append(_name(job, folder))
            continue
        try:
            result = run_files.read_result(job)
        except DamagedError as error:
            notes.append(f"left out: {error}; run the training command again to repeat this training")
            continue
        results.append(printable_tree(result))
        unchecked += not run_files.has_checksums(result)
        faults = run_files.faults(job, result)
        if not run_files.has_checksums(result) and _read_curve(job) is None:
            faults["summary.csv"] = "can't be read"
        notes += [
            f"{_name(job / name, folder)} {fault}; the figures above do not depend on it"
            for name, fault in faults.items()
        ]
    if unchecked:
        verbs = ("has", "it is") if unchecked == 1 else ("have", "they are")
        of_all = f"{unchecked} of {counted(len(results), 'result')}"
        notes.append(f"{of_all} {verbs[0]} no checksums: {verbs[1]} from an older version")
    fault = settings_fault(folder)
    return Found(tuple(results), (*notes, fault) if fault else tuple(notes), tuple(unfinished))


def _name(path: Path, folder: Path) -> str:
    return printable(path.relative_to(folder), LONGEST)


def foreign(folder: Path) -> list[str]:
    """Return the finished jobs in ``folder``, as ``seed1/student``, that its ``config.yaml`` does not name.

    They are from an earlier command with other seeds, stages or methods, and perhaps other settings.
    """
    known = places(read_settings(folder))
    finished = [job for job in run_files.job_folders(folder) if (job / RESULT).exists()]
    return [_name(job, folder) for job in finished if known is not None and _name(job, folder) not in known]


def _rank(method: str, methods: Sequence[str], row: Row) -> tuple[int, str]:
    """Sort key: first the jobs that all methods share, then the methods in the order of the configuration."""
    if not method_in(row.name):
        return -1, ""
    return (methods.index(method) if method in methods else len(methods)), method


def read_curves(folder: Path, row: Row) -> list[dict[int, float]]:
    """Return test top-1 in percent by epoch, for each seed with an intact ``summary.csv``."""
    curves = []
    for result in row.results:
        job = folder / f"seed{result['seed']}" / row.name
        if "summary.csv" not in run_files.faults(job, {FILES: _only(result, "summary.csv")}):
            curves.append(_read_curve(job))
    return [curve for curve in curves if curve]


def _only(result: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in result.get(FILES, {}).items() if key == name}


def _read_curve(job: Path) -> dict[int, float] | None:
    """Return top-1 by epoch; empty without ``summary.csv``, None if it can't be read."""
    path = job / "summary.csv"
    if not path.exists():
        return {}
    try:
        lines = list(csv.DictReader(read_regular(path).decode().splitlines()))
        return {int(line["epoch"]): float(line["test_top1"]) for line in lines if line.get("test_top1")}
    except (DamagedError, ValueError, KeyError, TypeError, csv.Error):
        return None
