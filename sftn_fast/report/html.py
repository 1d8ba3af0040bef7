"""The report as one self-contained HTML file, with pictures and script inside, in light and dark.

Without its script the page has the same content, but its tables can't be sorted.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined, Template

from sftn_fast.experiment.labels import label
from sftn_fast.report.glossary import define
from sftn_fast.report.results import AGREEMENT, BEST, CALIBRATION, CKA, COST, KL, SECONDS, SPEED, TOP1, Column, Row
from sftn_fast.report.terminal import Cells

TEMPLATE = "page.html.j2"
PER_TRAINING: tuple[Column, ...] = (TOP1, BEST, AGREEMENT, KL, CKA, CALIBRATION, SECONDS, SPEED, COST)


@dataclass(frozen=True)
class Table:
    """A table of the page, which can be sorted except for its total."""

    head: Sequence[str]
    lines: Sequence[Sequence[str]]
    total: Sequence[str] | None = None

    @classmethod
    def of(cls, cells: Cells, *, has_total: bool = False) -> Table:
        """Return the table of ``cells``; with ``has_total`` their last line is the total."""
        head, *lines = cells
        return cls(head, lines[:-1], lines[-1]) if has_total and lines else cls(head, lines)

    @property
    def definitions(self) -> dict[str, str]:
        """Definitions of its headings."""
        return define(self.head)


def page(
    *,
    title: str,
    subtitle: str,
    tables: Sequence[tuple[str, Cells, Sequence[str]]],
    pictures: Iterable[tuple[str, Path]],
    rows: Sequence[Row],
    costs: Cells,
    settings: str,
) -> str:
    """Return the HTML file.

    Args:
        title: What was run.
        subtitle: When the report was made.
        tables: Heading, cells, and the sentences below each table.
        pictures: Heading and PNG file of each picture.
        rows: The results, for a table with a line for each training.
        costs: The table of times; its last line is the total.
        settings: The run's configuration as YAML; empty if it is not known.
    """
    return _template().render(
        title=title,
        subtitle=subtitle,
        tables=[(heading, Table.of(cells), sentences) for heading, cells, sentences in tables],
        pictures=[(heading, base64.b64encode(path.read_bytes()).decode()) for heading, path in pictures],
        costs=Table.of(costs, has_total=True),
        trainings=Table.of(_trainings(rows)),
        environments=environments(rows),
        settings=settings,
    )


@cache
def _template() -> Template:
    environment = Environment(autoescape=True, undefined=StrictUndefined, keep_trailing_newline=True)
    environment.filters["heading"] = _heading
    return environment.from_string(resources.files(__package__).joinpath(TEMPLATE).read_text("utf-8"))


def _heading(text: str) -> str:
    """Capitalise a heading, except for symbols of one letter; a column without a heading holds trainings."""
    return text[:1].upper() + text[1:] if text[1:2].isalpha() else text or "Training"


def _trainings(rows: Sequence[Row]) -> Cells:
    headings = [column.heading for column in PER_TRAINING]
    cells = [["training", "seed", "network", "parameters", "epochs", *headings, "finished"]]
    for row in rows:
        for result in row.results:
            figures = [_figure(column, result) for column in PER_TRAINING]
            about = [str(result["seed"]), row.network, f"{result['parameters']:,}", str(result["epochs"])]
            finished = result.get("environment", {}).get("finished", "-")
            cells.append([label(row.name), *about, *figures, finished])
    return cells


def _figure(column: Column, result: dict[str, Any]) -> str:
    value = column.value(result)
    return "-" if value is None else f"{value:.{column.digits}f}"


def environments(rows: Sequence[Row]) -> list[str]:
    """Return the software versions and the machine of the trainings, each combination once."""
    found: dict[str, None] = {}
    for row in rows:
        for result in row.results:
            environment = {k: v for k, v in result.get("environment", {}).items() if k != "finished"}
            found[", ".join(f"{key} {value}" for key, value in environment.items()) or "not recorded"] = None
    return list(found)
