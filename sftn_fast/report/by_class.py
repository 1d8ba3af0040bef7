"""Accuracy by class, read from the table that a finished job writes beside its ``result.json``.

``result.json`` holds the checksum of that table. A table that was changed later is reported and not shown.
"""

from __future__ import annotations

import csv
import hashlib
import io
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sftn_fast.experiment.class_accuracy import FILE
from sftn_fast.experiment.labels import label
from sftn_fast.report.results import Row

FEW = 20
"""Largest number of classes in ``report.md``; of more classes, the hardest."""
PAGE = 200
"""Largest number of classes in ``report.html``; of more classes, the hardest."""


@dataclass(frozen=True)
class ClassAccuracy:
    """Accuracy of one network on one class."""

    name: str
    images: int
    """Test images of the class."""
    accuracy: float | None
    """Accuracy on them in percent, mean over the seeds; None without images."""


def read(folder: Path, row: Row) -> tuple[list[ClassAccuracy], list[str]]:
    """Return a row's accuracy by class, mean over the seeds, and a sentence for each table that can't be used.

    The list is empty for results of a version that did not count by class.
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
            problems.append(f"{label(row.name)}, seed {result['seed']}: no accuracy by class: {error}")
    if not counts or len({len(each) for each in counts}) > 1:
        return [], problems
    return [_average(same_class) for same_class in zip(*counts, strict=True)], problems


def _read_counts(path: Path, sha256: str) -> list[tuple[str, int, int]]:
    """Return name, images and correctly classified images of each class."""
    if not path.is_file():
        raise ValueError(f"{path} is missing")
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != sha256:
        raise ValueError(f"{path} was changed after the training")
    lines = csv.DictReader(io.StringIO(content.decode("utf-8", "replace")))
    return [(line["name"], int(line["images"]), int(line["right"])) for line in lines]


def _average(seeds: Sequence[tuple[str, int, int]]) -> ClassAccuracy:
    name, images, _ = seeds[0]
    shares = [100 * right / of for _, of, right in seeds if of]
    return ClassAccuracy(name, images, statistics.fmean(shares) if shares else None)


def table(networks: Mapping[str, Sequence[ClassAccuracy]], most: int) -> list[list[str]]:
    """Return a table with a row for each class and a column for each network.

    Of more than ``most`` classes, only those with the lowest mean accuracy are in it.
    """
    classes = next(iter(networks.values()))
    order = sorted(range(len(classes)), key=lambda i: _mean(i, networks))[:most]
    cells = [["class", "images", *networks]]
    for i in sorted(order):
        figures = [each[i].accuracy for each in networks.values()]
        texts = ["-" if figure is None else f"{figure:.1f}" for figure in figures]
        cells.append([classes[i].name, str(classes[i].images), *texts])
    return cells


def _mean(number: int, networks: Mapping[str, Sequence[ClassAccuracy]]) -> float:
    figures = [each[number].accuracy for each in networks.values()]
    known = [figure for figure in figures if figure is not None]
    return statistics.fmean(known) if known else 101.0


def hardest(name: str, classes: Sequence[ClassAccuracy], count: int = 3) -> str | None:
    """Return a sentence that names the classes with the lowest accuracy; None with fewer than two classes."""
    known = sorted((each for each in classes if each.accuracy is not None), key=lambda each: each.accuracy or 0.0)
    if len(known) < 2:
        return None
    named = ", ".join(f"{each.name!r} {each.accuracy:.1f} % of {each.images}" for each in known[:count])
    return f"Hardest classes for the {name}: {named}"
