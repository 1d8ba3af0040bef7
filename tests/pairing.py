"""Choices of cases from a table of several axes: every pair of values, instead of every combination.

A fault shows with one value of an axis or with two together, hardly ever with three alone. So each value of each axis
meets each value of each other axis in at least one test. Where code is written for three values together, a test needs
the full table: tests/ops/test_every_op.py has the values of each loss, on each backend, in each dtype.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

import pytest

Axis = Iterable[Any] | Mapping[str, Any]


def choose_pairs(*axes: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Return rows with one value of each axis, in which every two values of two axes meet. The same in each call.

    Each row starts with a pair that is missing, and takes from the other axes what meets most for the first time.
    """
    width = len(axes)
    if not all(len(axis) for axis in axes):  # such as the other levels of a library that has one
        return []
    if width == 1:
        return [(value,) for value in axes[0]]
    missing = {
        (i, a, j, b): None
        for i, j in combinations(range(width), 2)
        for a in range(len(axes[i]))
        for b in range(len(axes[j]))
    }
    used = [[0] * len(axis) for axis in axes]
    rows = []
    while missing:
        i, a, j, b = next(iter(missing))
        row = {i: a, j: b}
        for axis in sorted(set(range(width)) - {i, j}, key=lambda axis: -len(axes[axis])):
            row[axis] = max(
                range(len(axes[axis])),
                key=lambda value: (sum(pair in missing for pair in _met(row, axis, value)), -used[axis][value]),
            )
        for axis, value in row.items():
            used[axis][value] += 1
            for pair in _met(row, axis, value):
                missing.pop(pair, None)
        rows.append(tuple(axes[axis][row[axis]] for axis in range(width)))
    return rows


def _met(row: Mapping[int, int], axis: int, value: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield the pairs of a value with the others of a row."""
    for other, its in row.items():
        if other != axis:
            yield (axis, value, other, its) if axis < other else (other, its, axis, value)


def paired(**axes: Axis) -> pytest.MarkDecorator:
    """Parametrize a test by the values of each argument, in pairs. ``backend`` goes to the fixture of this name.

    A mapping has the names of its values. Other values are named by themselves.
    """
    labelled = [_labelled(axis) for axis in axes.values()]
    rows = choose_pairs(*(list(axis) for axis in labelled))
    values = [tuple(axis[label] for axis, label in zip(labelled, row, strict=True)) for row in rows]
    indirect = ["backend"] if "backend" in axes else False
    return pytest.mark.parametrize(tuple(axes), values, ids=["-".join(row) for row in rows], indirect=indirect)


def _labelled(axis: Axis) -> dict[str, Any]:
    if isinstance(axis, Mapping):
        return dict(axis)
    values = list(axis)
    labels = [getattr(value, "__name__", str(value)).removeprefix("torch.") for value in values]
    assert len(set(labels)) == len(values), f"values with equal names: {labels}"
    return dict(zip(labels, values, strict=True))
