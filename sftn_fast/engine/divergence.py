"""Whether a training that ran to its end learned nothing, or lost what it had learned."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

FAR = 20.0
"""Times the cross-entropy of a constant prediction. No network that learned is so sure of so much that is wrong."""
PEAK = 1000.0
"""The same for an epoch in the middle, after which a training may have found back."""
WORSE = 1.5
"""The same for the end of a training that is no better than chance."""
CROSS_ENTROPIES = ("train_ce", "train_teacher_ce", "val_ce", "test_ce")


def near_chance(top1: float, num_classes: int) -> bool:
    """Whether an accuracy in percent is about that of guessing: below twice that, and for few classes closer to it."""
    chance = 100 / num_classes
    return top1 <= chance + min(chance, (100 - chance) / 10)


def verdict(history: Sequence[dict[str, Any]], num_classes: int, *, networks: int = 1) -> str | None:
    """What is wrong with a training of these rows, in one line; None if nothing is.

    It diverged if a cross-entropy of the last epoch is not finite or 20 times ln C, that of a constant prediction; if
    one of any epoch was 1000 times that; or if the last epoch's, in training or test, is 1.5 times that and the
    accuracy near chance.

    Args:
        history: A row for each epoch, as :class:`~sftn_fast.engine.loop.FitResult` has them; its last is evaluated.
        num_classes: C.
        networks: How many networks ``train_ce`` is the sum of.
    """
    constant = math.log(num_classes)
    last = _cross_entropies(history[-1], networks)
    everything = [(value, row["epoch"]) for row in history for value in _cross_entropies(row, networks)]
    highest, where = max(everything, key=lambda found: _badness(found[0]))
    end = max(last, key=_badness)
    at_chance = near_chance(history[-1]["test_top1"], num_classes)
    if not math.isfinite(end) or end > FAR * constant or (at_chance and end > WORSE * constant):
        what = f"its cross-entropy ends at {end:.4g}"
    elif _badness(highest) > PEAK * constant:
        what = f"its cross-entropy rose to {highest:.4g} in epoch {where}"
    else:
        return None
    return (
        f"training diverged: {what}, where a constant prediction has {constant:.4g}; lower the learning rate (optim.lr)"
    )


def _badness(value: float) -> float:
    """The value; infinite for what is no number, which compares with nothing."""
    return math.inf if math.isnan(value) else value


def _cross_entropies(row: dict[str, Any], networks: int) -> list[float]:
    found = {name: row[name] for name in CROSS_ENTROPIES if row.get(name) is not None}
    if "train_ce" in found:
        found["train_ce"] /= networks
    return list(found.values())
