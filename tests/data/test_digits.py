from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch

from sftn_fast.config import ConfigError, DataConfig
from sftn_fast.data.source import load


@pytest.fixture(scope="module")
def source():
    return load(DataConfig("digits"))


def test_the_split_is_balanced_and_the_same_every_time(source):
    assert source.train.labels.bincount().tolist() == [100] * 10
    assert source.test.labels.bincount().tolist() == [78, 82, 77, 83, 81, 82, 81, 79, 74, 80]
    again = load(DataConfig("digits"))
    assert torch.equal(source.train.pixels, again.train.pixels)
    # Golden: a change of the split would silently change every result that was ever measured on it.
    assert hashlib.sha256(source.train.pixels.numpy().tobytes()).hexdigest()[:16] == "873c8dd2f9efdd50"


def test_training_and_test_set_are_together_the_whole(source):
    from sklearn.datasets import load_digits

    whole = np.round(load_digits().images * 255 / 16).astype(np.uint8)
    both = torch.cat([source.train.pixels, source.test.pixels]).squeeze(1).numpy()
    assert sorted(image.tobytes() for image in both) == sorted(image.tobytes() for image in whole)


def test_the_greys_fill_the_byte(source):
    assert (int(source.train.pixels.min()), int(source.train.pixels.max())) == (0, 255)


def test_the_normalisation_is_that_of_the_training_set(source):
    pixels = source.train.pixels.double() / 255
    assert float(pixels.mean()) == pytest.approx(source.mean[0], abs=1e-4)
    assert float(pixels.std(correction=0)) == pytest.approx(source.std[0], abs=1e-4)


def test_other_digits_are_refused(monkeypatch):
    from sklearn import datasets

    bunch = datasets.load_digits()
    bunch.images[7, 3, 3] += 1
    monkeypatch.setattr(datasets, "load_digits", lambda: bunch)
    with pytest.raises(ConfigError, match=r"digits are not the published ones: sha256 .*; pip install"):
        load(DataConfig("digits"))
