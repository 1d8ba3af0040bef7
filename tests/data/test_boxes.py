"""Hidden parts of images: sizes, places, and what is filled in."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sftn_fast.data.boxes import cutout_boxes, erasing_boxes, fill_boxes
from sftn_fast.data.seeding import generator


def test_erased_areas():
    boxes = erasing_boxes(generator(0), 20_000, 32, 0.25)
    top, left, height, width = boxes
    hidden = height > 0
    assert boxes.dtype == np.int64 and (boxes >= 0).all()
    assert ((top + height <= 32) & (left + width <= 32)).all()
    assert hidden.mean() == pytest.approx(0.25, abs=0.015)  # five standard deviations
    area = (height * width)[hidden] / 32**2
    assert 0.01 < area.min() < 0.03 and 0.31 < area.max() < 0.36
    assert area.mean() == pytest.approx(0.175, abs=0.01)
    assert abs(np.log(height[hidden] / width[hidden]).mean()) < 0.05
    place = top[hidden] / (32 - height[hidden])
    assert place.min() == 0 and place.max() == 1 and place.mean() == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_nothing_or_all_is_erased(probability):
    assert ((erasing_boxes(generator(0), 1000, 16, probability)[2] > 0) == probability).all()


def test_boxes_have_the_proportions_of_torchvision():
    v2 = pytest.importorskip("torchvision.transforms.v2")
    theirs, image = v2.RandomErasing(p=1, value=1), torch.zeros(1, 32, 32)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        expected = np.array([theirs(image).mean().item() for _ in range(400)])
    _, _, height, width = erasing_boxes(generator(3), 4000, 32, 1.0)
    ours = height * width / 32**2
    for share in (0.25, 0.5, 0.75):
        assert np.quantile(ours, share) == pytest.approx(np.quantile(expected, share), abs=0.03)


def test_cutouts():
    top, left, height, width = cutout_boxes(generator(0), 20_000, 32)
    assert height.min() >= 1 and height.max() == 16 and (top >= 0).all() and (left >= 0).all()
    assert (top + height <= 32).all() and (top + height == 32).any() and (top == 0).any()
    cut = (top + height == 32) | (left + width == 32)
    assert (height == width)[~cut].all()  # squares, unless they leave the image
    assert height[~cut].mean() == pytest.approx(8, abs=0.7)


def test_filling():
    images = torch.rand(3, 2, 5, 4)
    boxes = torch.tensor([[1, 0, 2], [2, 0, 1], [2, 0, 3], [1, 0, 3]])
    value = torch.tensor([7.0, 8.0]).view(2, 1, 1)
    expected = images.clone()
    expected[0, :, 1:3, 2:3] = value
    expected[2, :, 2:5, 1:4] = value
    assert torch.equal(fill_boxes(images, boxes, value), expected)
