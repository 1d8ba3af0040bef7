from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from sftn_fast.data.seeding import generator


def draw(*key):
    return generator(*key).integers(2**62, size=8).tolist()


def test_the_key_decides_the_stream():
    assert draw(3, 7, "order") == draw(3, 7, "order")


@pytest.mark.parametrize("other", [(3, 8, "order"), (4, 7, "order"), (7, 3, "order"), (37, "order"), (3, 7, "crop")])
def test_another_key_gives_another_stream(other):
    assert draw(3, 7, "order") != draw(*other)


def test_numbers_are_not_glued_together():
    assert draw(1, 23) != draw(12, 3)


def test_streams_of_neighbouring_epochs_are_uncorrelated():
    streams = np.stack([generator(0, epoch, "order").standard_normal(20_000) for epoch in range(6)])
    correlations = np.corrcoef(streams)[~np.eye(6, dtype=bool)]
    assert np.abs(correlations).max() < 5 / np.sqrt(20_000)


def test_global_generators_stay_where_they_are():
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002
    draw(0, 0)
    assert before == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())  # noqa: NPY002
