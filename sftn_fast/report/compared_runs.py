"""The runs of a comparison: their results by job, their settings, and whether they were tested on the same images."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sftn_fast.config import ConfigError
from sftn_fast.experiment.labels import method_in
from sftn_fast.experiment.plan import Job, places
from sftn_fast.experiment.settings import read_settings
from sftn_fast.report.results import Row, find_results, read_run, rows_of
from sftn_fast.utils.atomic import describe
from sftn_fast.utils.text import counted, listed, printable

SHAPE = ("num_train", "num_val", "image_size", "white")
"""What decides, beside the test images, the checksum of all images in a job's identity."""


@dataclass(frozen=True)
class ComparedRun:
    """One run of a comparison."""

    name: str
    """The last parts of its path, as many as tell it from the other runs."""
    folder: Path
    rows: dict[str, Row]
    """Its results by the name of the job; where other runs name several methods, with the method in the name."""
    settings: dict[str, Any]
    notes: tuple[str, ...]
    """A sentence for what is missing, damaged or left out."""

    @property
    def data(self) -> dict[str, Any]:
        """What its results record about their images."""
        found: dict[str, Any] = {}
        for result in self._results():
            found |= result.get("identity", {}).get("data") or {}
        return found

    @property
    def test_contents(self) -> set[str]:
        """Checksums of its test images; empty for a run of an older version, which recorded none."""
        return {result["test_content"] for result in self._results() if result.get("test_content")}

    def has_same_tests(self, other: ComparedRun) -> bool:
        """Return whether both runs were tested on the same images, as far as their results tell."""
        ours, theirs = self.test_contents, other.test_contents
        if ours and theirs:
            return ours == theirs
        one, two = self.data, other.data
        if any(one.get(key) != two.get(key) for key in ("data", "num_test")):
            return False
        # The checksum is of training and test images: with other training images it differs in any case.
        return one.get("content") == two.get("content") or any(one.get(key) != two.get(key) for key in SHAPE)

    def _results(self) -> list[dict[str, Any]]:
        return [result for row in self.rows.values() for result in row.results]


def read_runs(folders: Sequence[Path]) -> tuple[list[ComparedRun], list[str]]:
    """Return the runs in ``folders`` that have results, and a sentence for each folder that is left out.

    Raises:
        ConfigError: Fewer than two different runs have results.
    """
    found: dict[Path, tuple[dict[str, Row], dict[str, Any], tuple[str, ...]]] = {}
    left_out = []
    for folder in folders:
        path = Path(os.path.realpath(folder))
        if path in found:
            left_out.append(f"{printable(folder)} is a run that was named before")
            continue
        try:
            found[path] = _read(folder)
        except ConfigError as error:
            left_out.append(str(error))
        except OSError as error:
            left_out.append(describe(error))
    if len(found) < 2:
        raise ConfigError("; ".join([f"RUN must be two or more runs with results, got {len(found)}", *left_out]))
    names_methods = any(method_in(job) for rows, _, _ in found.values() for job in rows)
    runs = [
        ComparedRun(name, path, _by_method(rows) if names_methods else rows, settings, notes)
        for name, (path, (rows, settings, notes)) in zip(_short_names(list(found)), found.items(), strict=True)
    ]
    return runs, left_out


def _read(folder: Path) -> tuple[dict[str, Row], dict[str, Any], tuple[str, ...]]:
    """Return rows, settings and notes of a run; raise :class:`ConfigError` if it has no results."""
    found, settings = find_results(folder), read_settings(folder)
    if not found.results:
        read_run(folder)  # raises, and says why
    rows = {row.name: row for row in rows_of(found, settings)}
    notes = list(found.remarks)
    finished = {f"seed{result['seed']}/{result['name']}" for result in found.results}
    planned = places(settings)
    missing = sorted((planned or set(found.unfinished)) - finished)
    if missing:
        planned_count = counted(len(missing) + len(finished), "training")
        notes.insert(0, f"unfinished, {len(missing)} of {planned_count}: {listed(missing)}")
    return rows, settings, tuple(notes)


def _by_method(rows: dict[str, Row]) -> dict[str, Row]:
    """Return rows by the name that their jobs have in a run with several methods."""
    return {_name_with_method(name, row): row for name, row in rows.items()}


def _name_with_method(name: str, row: Row) -> str:
    if not row.method or method_in(name):
        return name
    kind, source = name.split("-", 1)
    return Job(kind, 0, source, row.method).name


def _short_names(paths: Sequence[Path]) -> list[str]:
    """Return the last parts of each path, as many as are needed to tell the paths apart."""
    for count in range(1, max(len(path.parts) for path in paths) + 1):
        names = [str(Path(*path.parts[-count:])) for path in paths]
        if len(set(names)) == len(paths):
            break
    return names
