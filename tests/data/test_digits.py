from __future__ import annotations

import gzip
import hashlib
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from sftn_fast.config import ConfigError, DataConfig
from sftn_fast.data.source import Source, load
from sftn_fast.data.sources import digits


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


def test_the_file_is_read_without_scikit_learn_and_as_it_reads_it(source, monkeypatch):
    from sklearn.datasets import load_digits

    bunch = load_digits()
    rows = digits._read_file()
    assert np.array_equal(rows[:, :-1], bunch.data) and np.array_equal(rows[:, -1], bunch.target)
    assert rows.dtype == bunch.data.dtype
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    same(load(DataConfig("digits")), source)


def test_without_its_file_scikit_learn_is_asked(source, monkeypatch):
    monkeypatch.setattr(digits, "FILE", "datasets/data/nowhere.csv.gz")
    assert digits._read_file() is None
    same(load(DataConfig("digits")), source)


def other_values(content: bytes) -> bytes:
    return gzip.compress(gzip.decompress(content).replace(b"16", b"15", 1))


def fewer_columns(content: bytes) -> bytes:
    return gzip.compress(b"1,2,3\n" * 1797)


def no_numbers(content: bytes) -> bytes:
    return gzip.compress(b"<html>\n")


def cut_off(content: bytes) -> bytes:
    return content[:-1000]


def other_bytes(content: bytes) -> bytes:
    return content[:1000] + bytes(1000) + content[2000:]


def not_compressed(content: bytes) -> bytes:
    return gzip.decompress(content)


def nothing(content: bytes) -> bytes:
    return b""


@pytest.mark.parametrize(
    "change", [other_values, fewer_columns, no_numbers, cut_off, other_bytes, not_compressed, nothing]
)
def test_a_file_of_something_else_is_not_taken(change, source, tmp_path, monkeypatch):
    package = find_spec("sklearn")
    path = tmp_path / digits.FILE
    path.parent.mkdir(parents=True)
    path.write_bytes(change((Path(package.submodule_search_locations[0]) / digits.FILE).read_bytes()))
    monkeypatch.setattr(digits, "find_spec", lambda name: SimpleNamespace(submodule_search_locations=[str(tmp_path)]))
    same(load(DataConfig("digits")), source)


def test_other_digits_are_refused(monkeypatch):
    from sklearn import datasets

    bunch = datasets.load_digits()
    bunch.images[7, 3, 3] += 1
    monkeypatch.setattr(datasets, "load_digits", lambda: bunch)
    monkeypatch.setattr(digits, "_read_file", lambda: None)
    with pytest.raises(ConfigError, match=r"digits are not the published ones: sha256 .*; pip install"):
        load(DataConfig("digits"))


def same(one: Source, other: Source) -> None:
    """Assert that two sources hold the same images and labels."""
    for split in ("train", "test"):
        for name in ("pixels", "labels"):
            ours, theirs = getattr(getattr(one, split), name), getattr(getattr(other, split), name)
            assert ours.dtype == theirs.dtype and torch.equal(ours, theirs)
