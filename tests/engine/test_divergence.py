"""Trainings that count as diverged, and others that do not."""

from __future__ import annotations

import math

import pytest

from sftn_fast.engine.divergence import near_chance, verdict


def rows(*values: tuple[float, float, float]) -> list[dict[str, float]]:
    """Return rows of training and test cross-entropy and accuracy, one for each epoch."""
    return [
        {"epoch": epoch, "train_ce": train, "test_ce": test, "test_top1": top1}
        for epoch, (train, test, top1) in enumerate(values, start=1)
    ]


@pytest.mark.parametrize(
    ("history", "says"),
    [
        ([(2.5, 2.2, 20), (1.0, 1.2, 60)], None),
        ([(2.9, 2.4, 10)], None),  # one epoch that has not learned yet
        ([(0.01, 3.9, 62)], None),  # overfitted and confident, but above chance
        ([(3e9, 1e10, 10)], "ends at 1e+10"),
        ([(2.0, math.inf, 40)], "ends at inf"),
        ([(2.0, math.nan, 40)], "ends at nan"),
        ([(2.0, 60, 40)], "ends at 60"),
        ([(4.0, 4.0, 10)], "ends at 4"),
        ([(4.0, 2.3, 10)], "ends at 4"),
        ([(1e10, 1e10, 10), (2.0, 2.0, 30)], "rose to 1e+10 in epoch 1"),
        ([(2.0, 2.0, 30), (2.0, math.nan, 10), (2.0, 2.0, 30)], "rose to nan in epoch 2"),
        ([(2.0, 2.0, 30), (1e4, 2.0, 30), (2.0, 2.0, 30)], "rose to 1e+04 in epoch 2"),
    ],
)
def test_verdict(history, says):
    found = verdict(rows(*history), 10)
    assert (found is None) if says is None else (says in found and "constant prediction has 2.303" in found)
    assert found is None or "\n" not in found


def test_a_sum_over_networks_counts_as_their_mean():
    history = rows((6.0, 2.2, 12))
    assert verdict(history, 10, summed=3) is None
    assert "ends at 6" in str(verdict(history, 10))


def test_epochs_without_an_evaluation_and_other_names():
    history = [
        {"epoch": 1, "train_teacher_ce": 1.0},
        {"epoch": 2, "train_teacher_ce": 1e9, "test_ce": 1, "test_top1": 9},
    ]
    assert "ends at 1e+09" in str(verdict(history, 10))


@pytest.mark.parametrize(
    ("top1", "classes", "near"),
    [
        (8.33, 12, True),
        (10, 10, True),
        (25, 10, False),
        (52, 2, True),
        (70, 2, False),
        (1.5, 100, True),
        (3, 100, False),
    ],
)
def test_near_chance(top1, classes, near):
    assert near_chance(top1, classes) == near
