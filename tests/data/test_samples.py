"""Test images that a run leaves to try its student on."""

from __future__ import annotations

import dataclasses
import io

import pytest
import torch

from sftn_fast import data
from sftn_fast.config import DataConfig
from sftn_fast.data import decode

image = pytest.importorskip("PIL.Image")


def build(name: str) -> data.ImageData:
    return data.build(DataConfig(name), seed=0, batch_size=8, device="cpu")


@pytest.mark.parametrize(("name", "mode"), [("digits", "L"), ("fake", "RGB")])
def test_there_is_the_first_test_image_of_each_class(name, mode):
    images = build(name)
    files = data.sample_files(images)
    assert len(files) == 10
    for label, content in enumerate(files.values()):
        found = image.open(io.BytesIO(content))
        assert (found.format, found.mode) == ("PNG", mode)
        first = images.test.data.labels.tolist().index(label)
        pixels = torch.tensor(list(found.tobytes())).view(*found.size, -1).permute(2, 0, 1)
        assert torch.equal(pixels, images.test.data.pixels[first].long())


def test_files_are_named_after_classes():
    digits, fake = build("digits"), build("fake")
    assert list(data.sample_files(digits)) == [f"{number}.png" for number in range(10)]
    assert list(data.sample_files(fake))[:2] == ["0-pattern_0.png", "1-pattern_1.png"]
    odd = dataclasses.replace(digits, class_names=("../up", "a/b", "é" * 300, "", "x\n", *"56789"))
    assert list(data.sample_files(odd))[:5] == ["0-_up.png", "1-a_b.png", "2-_.png", "3.png", "4-x_.png"]
    assert list(data.sample_files(dataclasses.replace(digits, class_names=())))[3] == "3.png"


def test_a_missing_pillow_costs_the_files_alone(monkeypatch):
    images = build("digits")
    monkeypatch.setattr(decode, "import_module", lambda name: __import__("no_such_package"))
    assert data.sample_files(images) == {}
