"""What finished stages left behind: their figures, their curves, the configuration of their run."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sftn_fast import safe_yaml
from sftn_fast.config import ConfigError
from sftn_fast.plan import RESULT, places

LABELS = {
    "teacher": "standard teacher",
    "sftn": "SFTN teacher",
    "student": "student alone",
    "distill-teacher": "student of standard teacher",
    "distill-sftn": "student of SFTN teacher",
    "collaborate": "student among peers",
}
"""What a stage is called, in the order of the table."""


def kind(name: str) -> str:
    """The part of a stage's name that says what it is, without its method: a key of ``LABELS``."""
    return max((key for key in LABELS if f"{name}-".startswith(f"{key}-")), key=len)


def label(name: str) -> str:
    """What a stage is called in a table."""
    return f"{LABELS[kind(name)]}, {method_in(name)}" if method_in(name) else LABELS[kind(name)]


def method_in(name: str) -> str:
    """The method in a stage's name, as a folder can be called; empty where the run has only one."""
    return name[len(kind(name)) + 1 :]


@dataclass(frozen=True)
class Column:
    """One quantity of the table: its heading, where it stands in a result, and how many digits it deserves."""

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
    """The results of one stage over all seeds."""

    name: str
    network: str
    results: tuple[dict[str, Any], ...]

    @property
    def method(self) -> str:
        """The losses as the configuration has them; empty for a stage that does not distil."""
        return self.results[0].get("identity", {}).get("distill") or method_in(self.name)

    def values(self, column: Column) -> list[float]:
        """The quantity of each seed that has one."""
        return list(self.by_seed(column).values())

    def by_seed(self, column: Column) -> dict[int, float]:
        """The quantity by seed."""
        values = ((result["seed"], column.value(result)) for result in self.results)
        return {seed: value for seed, value in values if value is not None}


def read_results(folder: Path) -> list[Row]:
    """Collect the finished stages below ``folder``, in the order of the table.

    Raises :class:`ConfigError` if nothing there has finished.
    """
    others = foreign(folder)
    paths = [path for path in sorted(folder.glob(f"seed*/*/{RESULT}")) if _place(path) not in others]
    results = [json.loads(path.read_text()) for path in paths]
    if not results:
        raise ConfigError(f"no finished stage in {folder}")
    results.sort(key=lambda result: result["seed"])
    names = {result["name"] for result in results}
    rows = []
    for name in names:
        chosen = tuple(result for result in results if result["name"] == name)
        rows.append(Row(name, chosen[0]["network"], chosen))
    order, methods = list(LABELS), [str(method) for method in read_settings(folder).get("methods") or ()]
    return sorted(rows, key=lambda row: (*_rank(row.method, methods, row), order.index(kind(row.name))))


def foreign(folder: Path) -> list[str]:
    """Return the finished stages in ``folder``, as ``seed1/student``, that are not of the run in its ``config.yaml``.

    They are of an earlier command with other seeds, stages or methods, whose settings may have been others too.
    """
    known = places(read_settings(folder))
    found = [_place(path) for path in sorted(folder.glob(f"seed*/*/{RESULT}"))]
    return [place for place in found if known is not None and place not in known]


def _place(result: Path) -> str:
    return f"{result.parent.parent.name}/{result.parent.name}"


def _rank(method: str, methods: Sequence[str], row: Row) -> tuple[int, str]:
    """What all methods share comes first, then the methods in the order of the configuration."""
    if not method_in(row.name):
        return -1, ""
    return (methods.index(method) if method in methods else len(methods)), method


def read_settings(folder: Path) -> dict[str, Any]:
    """The configuration that the run left in its folder; empty if there is none that can be read."""
    try:
        settings = safe_yaml.read(folder / "config.yaml")
    except ConfigError:
        return {}
    return settings if isinstance(settings, dict) else {}


def read_curves(folder: Path, row: Row) -> list[dict[int, float]]:
    """Top-1 on the test set in percent by epoch, of each seed that wrote its ``summary.csv``."""
    curves = []
    for result in row.results:
        path = folder / f"seed{result['seed']}" / row.name / "summary.csv"
        if path.is_file():
            with path.open(newline="") as file:
                lines = list(csv.DictReader(file))
            curves.append({int(line["epoch"]): float(line["test_top1"]) for line in lines if line.get("test_top1")})
    return [curve for curve in curves if curve]
