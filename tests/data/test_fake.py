from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from sftn_fast import data
from sftn_fast.config import ConfigError, DataConfig
from sftn_fast.data import resources
from sftn_fast.data.source import load


def test_sizes():
    source = load(DataConfig("fake"))
    assert source.train.pixels.shape == (512, 3, 32, 32)
    assert source.test.pixels.shape == (256, 3, 32, 32)
    assert source.train.labels.bincount().min() >= 51


def test_the_images_are_always_the_same_and_those_of_a_larger_set_begin_with_them():
    small, again, large = (load(DataConfig("fake", train_size=size)).train for size in (None, None, 1300))
    assert torch.equal(small.pixels, again.pixels)
    assert len(large.pixels) == 1300
    assert torch.equal(large.pixels[:512], small.pixels)
    assert len(large.pixels.unique(dim=0)) == 1300


def test_training_and_test_images_differ():
    source = load(DataConfig("fake"))
    both = torch.cat([source.train.pixels, source.test.pixels])
    assert len(both.unique(dim=0)) == len(both)


def test_train_and_val_size_enlarge_it_together():
    images = data.build(DataConfig("fake", train_size=600, val_size=100), seed=0, batch_size=60, device="cpu")
    assert (images.num_train, images.val.num_samples) == (600, 100)


def test_the_normalisation_is_about_right():
    source = load(DataConfig("fake"))
    pixels = source.train.pixels.float() / 255
    torch.testing.assert_close(pixels.mean((0, 2, 3)), torch.tensor(source.mean), rtol=0, atol=0.03)
    torch.testing.assert_close(pixels.std((0, 2, 3)), torch.tensor(source.std), rtol=0, atol=0.03)


def test_a_tiny_network_learns_it_in_two_epochs():
    torch.manual_seed(0)
    images = data.build(DataConfig("fake"), seed=0, batch_size=32, device="cpu")
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 16, 3, stride=2), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(4), torch.nn.Flatten(),
        torch.nn.Linear(256, 10),
    )  # fmt: skip
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)

    def accuracy():
        with torch.no_grad():
            right = sum(int((network(batch.images).argmax(1) == batch.target).sum()) for batch in images.test)
        return right / images.test.num_samples

    assert accuracy() < 0.3
    for epoch in range(2):
        for batch in images.train.epoch(epoch):
            optimizer.zero_grad()
            F.cross_entropy(network(batch.images), batch.target).backward()
            optimizer.step()
    assert accuracy() > 0.8


def test_more_images_than_memory_are_refused(monkeypatch):
    monkeypatch.setattr(resources, "memory", lambda: 10**9)
    for options in ({"train_size": 400_000}, {"val_size": 400_000}, {"image_size": 512, "train_size": 1_100}):
        with pytest.raises(ConfigError, match=r"this machine has 1\.0 GB; lower data\.train_size") as caught:
            data.build(DataConfig("fake", **options), seed=0, batch_size=60, device="cpu")
        assert "\n" not in str(caught.value)
