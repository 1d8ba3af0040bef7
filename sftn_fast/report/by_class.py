"""Accuracy by class: what a finished stage writes down, and what the report says of it.

A thousand classes would swell ``result.json``, so they have a table of their own beside it. ``result.json`` holds its
checksum: figures that were changed later are never shown.
"""

from __future__ import annotations

import csv
import hashlib
import io
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sftn_fast.experiment.class_counts import FILE
from sftn_fast.experiment.labels import label
from sftn_fast.report.results import Row

FEW = 20
"""Classes up to which all of them are shown in Markdown; of more, the page shows the hardest."""
PAGE = 200
"""Classes that the page shows at most."""


@dataclass(frozen=True)
class ClassAccuracy:
    """One class in one stage."""

    name: str
    images: int
    """Test images of the class."""
    accuracy: float | None
    """Share of them that is recognised, in percent, mean over the seeds; None without images."""


def read(folder: Path, row: Row) -> tuple[list[ClassAccuracy], list[str]]:
    """Return a stage's accuracy by class, averaged over its seeds, and a sentence for each file that can't be used.

    The list is empty for a stage of a version that counted nothing by class.
    """
    counts, problems = [], []
    for result in row.results:
        known = result.get("by_class")
        if not known:
            continue
        path = folder / f"seed{result['seed']}" / row.name / FILE
        try:
            counts.append(_read_counts(path, known["sha256"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            problems.append(f"{label(row.name)}, seed {result['seed']}: no accuracy by class, {error}")
    if not counts or len({len(each) for each in counts}) > 1:
        return [], problems
    return [_average(same_class) for same_class in zip(*counts, strict=True)], problems


def _read_counts(path: Path, sha256: str) -> list[tuple[str, int, int]]:
    """Name, images and recognised images of each class."""
    if not path.is_file():
        raise ValueError(f"{path} is missing")
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != sha256:
        raise ValueError(f"{path} is not what the stage wrote")
    lines = csv.DictReader(io.StringIO(content.decode("utf-8", "replace")))
    return [(line["name"], int(line["images"]), int(line["right"])) for line in lines]


def _average(seeds: Sequence[tuple[str, int, int]]) -> ClassAccuracy:
    name, images, _ = seeds[0]
    shares = [100 * right / of for _, of, right in seeds if of]
    return ClassAccuracy(name, images, statistics.fmean(shares) if shares else None)


def table(stages: Mapping[str, Sequence[ClassAccuracy]], most: int) -> list[list[str]]:
    """Return a line a class and a column a stage; of more than ``most`` classes, those that are recognised least."""
    classes = next(iter(stages.values()))
    order = sorted(range(len(classes)), key=lambda i: _mean(i, stages))[:most]
    cells = [["class", "images", *stages]]
    for i in sorted(order):
        figures = [each[i].accuracy for each in stages.values()]
        texts = ["-" if figure is None else f"{figure:.1f}" for figure in figures]
        cells.append([classes[i].name, str(classes[i].images), *texts])
    return cells


def _mean(number: int, stages: Mapping[str, Sequence[ClassAccuracy]]) -> float:
    figures = [each[number].accuracy for each in stages.values()]
    known = [figure for figure in figures if figure is not None]
    return statistics.fmean(known) if known else 101.0


def hardest(name: str, classes: Sequence[ClassAccuracy], count: int = 3) -> str | None:
    """Return a sentence that names the classes that a stage recognises least, or None where there are none."""
    known = sorted((each for each in classes if each.accuracy is not None), key=lambda each: each.accuracy or 0.0)
    if len(known) < 2:
        return None
    named = ", ".join(f"{each.name!r} {each.accuracy:.1f} % of {each.images}" for each in known[:count])
    return f"Hardest classes for the {name}: {named}"
