"""Crops of an image: bounds, distribution, and torchvision's rounding."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from sftn_fast.data.crops import AREA, ASPECT, LONGEST, Sample, center_crop, random_crop
from sftn_fast.data.seeding import generator

SIZES = [(375, 500), (500, 375), (224, 224), (64, 64), (97, 131), (1, 1), (3, 2000), (2000, 3), (600, 601), (750, 500)]


def views(height, width, count=400, **options):
    return [random_crop(generator(i), height, width, 64, **({"flip": True} | options)) for i in range(count)]


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_a_part_lies_inside_the_image(height, width):
    for view in views(height, width, 100):
        top, left, part_height, part_width = view.box
        assert min(top, left) >= 0 and min(part_height, part_width) >= 1
        assert top + part_height <= height and left + part_width <= width
        assert (view.resized, view.corner) == ((64, 64), (0, 0))


def test_area_ratio_place_and_flip_are_spread_over_all_that_is_allowed():
    found = views(375, 500, 3000)
    boxes = np.array([view.box for view in found])
    area = boxes[:, 2] * boxes[:, 3] / (375 * 500)
    ratio = np.log(boxes[:, 3] / boxes[:, 2])
    assert AREA[0] - 0.001 < area.min() < 0.1 and 0.95 < area.max() <= AREA[1]
    assert math.log(ASPECT[0]) - 0.02 < ratio.min() < -0.27 and 0.27 < ratio.max() < math.log(ASPECT[1]) + 0.02
    assert abs(ratio[area < 0.3].mean()) < 0.02  # small crops of every ratio fit, so that no ratio is preferred
    for place, room in ((boxes[:, 0], 375 - boxes[:, 2]), (boxes[:, 1], 500 - boxes[:, 3])):
        share = (place / np.maximum(room, 1))[room > 50]
        assert abs(share.mean() - 0.5) < 0.03 and share.min() < 0.02 and share.max() > 0.98
    assert abs(np.mean([view.flipped for view in found]) - 0.5) < 0.03


@pytest.mark.parametrize(("height", "width", "box"), [(3, 2000, (0, 998, 3, 4)), (2000, 3, (998, 0, 4, 3))])
def test_an_image_that_no_part_fits_is_cut_in_its_middle(height, width, box):
    assert {view.box for view in views(height, width, 20)} == {box}


def test_without_flip_the_same_parts_are_seen_upright():
    plain, mirrored = views(375, 500, 50, flip=False), views(375, 500, 50)
    assert [view.box for view in plain] == [view.box for view in mirrored]
    assert not any(view.flipped for view in plain)


def test_a_view_is_a_function_of_its_key():
    sample = Sample("a.jpg", (0, 1, "view", 5), flip=True)
    assert sample.crop(375, 500, 64) == sample.crop(375, 500, 64)
    assert sample.crop(375, 500, 64) != Sample("a.jpg", (0, 2, "view", 5), flip=True).crop(375, 500, 64)
    assert Sample("a.jpg").crop(375, 500, 64) == center_crop(375, 500, 64)


@pytest.mark.parametrize("size", [8, 64, 224])
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_the_centre_is_torchvisions(height, width, size):
    functional = pytest.importorskip("torchvision.transforms.v2.functional")
    view = center_crop(height, width, size)
    if max(height, width) > LONGEST * min(height, width):
        assert max(view.box[2:]) == LONGEST * min(
            height, width
        )  # resizing a 2000 x 3 image without cutting would be huge
        height, width = view.box[2:]
    resized = functional.resize(torch.empty(1, height, width), [round(size * 256 / 224)])
    assert view.resized == tuple(resized.shape[1:])
    rows = torch.arange(resized.shape[1])[None, :, None].expand_as(resized)
    columns = torch.arange(resized.shape[2])[None, None, :].expand_as(resized)
    cut = [functional.center_crop(places, [size, size])[0, 0, 0].item() for places in (rows, columns)]
    assert view.corner == tuple(cut)
