"""Signs that a finished training diverged: it learned nothing, or lost what it had learned."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

FAR = 20.0
"""Multiple of a constant prediction's cross-entropy. A network that learned stays below it."""
PEAK = 1000.0
"""The same for an epoch in the middle, after which training may have recovered."""
WORSE = 1.5
"""The same for the end of a training that is no better than chance."""
CROSS_ENTROPIES = ("train_ce", "train_teacher_ce", "val_ce", "test_ce")


def near_chance(top1: float, num_classes: int) -> bool:
    """Return whether an accuracy in percent is close to guessing: up to twice chance, for few classes less."""
    chance = 100 / num_classes
    return top1 <= chance + min(chance, (100 - chance) / 10)


def verdict(history: Sequence[dict[str, Any]], num_classes: int, *, summed: int = 1) -> str | None:
    """Return in one line how the training of these rows diverged; None if it did not.

    The measure is ln C, the cross-entropy of a constant prediction. A training diverged in one of three cases:
    a cross-entropy of the last epoch is not finite or above 20 ln C; one of any epoch is above 1000 ln C; one of the
    last epoch is above 1.5 ln C and the accuracy is near chance.

    Args:
        history: a row for each epoch, as in :class:`~sftn_fast.engine.loop.FitResult`; the last one is evaluated.
        num_classes: C.
        summed: number of cross-entropies that ``train_ce`` is the sum of, of several networks or views.
    """
    constant = math.log(num_classes)
    last = _cross_entropies(history[-1], summed)
    everything = [(value, row["epoch"]) for row in history for value in _cross_entropies(row, summed)]
    highest, where = max(everything, key=lambda found: _nan_as_inf(found[0]))
    end = max(last, key=_nan_as_inf)
    at_chance = near_chance(history[-1]["test_top1"], num_classes)
    if not math.isfinite(end) or end > FAR * constant or (at_chance and end > WORSE * constant):
        what = f"its cross-entropy ends at {end:.4g}"
    elif _nan_as_inf(highest) > PEAK * constant:
        what = f"its cross-entropy rose to {highest:.4g} in epoch {where}"
    else:
        return None
    return (
        f"training diverged: {what}, where a constant prediction has {constant:.4g}; lower the learning rate (optim.lr)"
    )


def _nan_as_inf(value: float) -> float:
    """Return ``value``, or infinity for NaN, which compares with nothing."""
    return math.inf if math.isnan(value) else value


def _cross_entropies(row: dict[str, Any], summed: int) -> list[float]:
    found = {name: row[name] for name in CROSS_ENTROPIES if row.get(name) is not None}
    if "train_ce" in found:
        found["train_ce"] /= summed
    return list(found.values())
