"""Choices of cases from a table of several axes: every pair of values, instead of every combination.

A fault shows with one value of an axis or with two together, hardly ever with three alone. So each value of each axis
meets each value of each other axis in at least one test. Kernels of a family with code of their own for three values
together need the full table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import combinations
from typing import Any

import pytest


def choose_pairs(*axes: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Return rows with one value of each axis, in which every two values of two axes meet. The same in each call.

    Each row starts with a pair that is missing, and takes from the other axes what meets most for the first time.
    """
    width = len(axes)
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


def _met(row: dict[int, int], axis: int, value: int) -> Iterable[tuple[int, int, int, int]]:
    """Yield the pairs of a value with the others of a row."""
    for other, its in row.items():
        if other != axis:
            yield (axis, value, other, its) if axis < other else (other, its, axis, value)


def label(value: Any) -> str | None:
    """Return the name of a dtype or memory format in a test's name; None leaves other values to pytest."""
    text = str(value)
    return text.removeprefix("torch.") if text.startswith("torch.") else None


def paired(*, ids: Callable[[Any], Any] = label, **axes: Iterable[Any]) -> pytest.MarkDecorator:
    """Parametrize a test by the values of each argument, in pairs. ``backend`` goes to the fixture of this name."""
    rows = choose_pairs(*(list(axis) for axis in axes.values()))
    indirect = ["backend"] if "backend" in axes else False
    return pytest.mark.parametrize(tuple(axes), rows, ids=ids, indirect=indirect)
