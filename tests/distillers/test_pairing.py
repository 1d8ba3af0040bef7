"""Pairs of student and teacher stages."""

from __future__ import annotations

import pytest

from sftn_fast import models
from sftn_fast.distillers.method import NetInfo, Setup
from sftn_fast.distillers.pairing import pair_stages

RESNET = [(64, 32, 32), (128, 16, 16), (256, 8, 8)]
VGG = [(128, 16, 16), (256, 8, 8), (512, 4, 4), (512, 4, 4)]


def numbers(student, teacher):
    return [(pair.student_stage, pair.teacher_stage) for pair in pair_stages(student, teacher)]


def test_equal_numbers_pair_in_order_whatever_the_sizes():
    assert numbers(RESNET, RESNET) == [(1, 1), (2, 2), (3, 3)]
    assert numbers(VGG, [(8, 1, 1)] * 4) == [(1, 1), (2, 2), (3, 3), (4, 4)]


def test_each_stage_at_most_once_and_the_last_together():
    assert numbers(VGG, RESNET) == [(1, 1), (2, 2), (4, 3)]
    assert numbers(RESNET, VGG) == [(1, 1), (2, 2), (3, 4)]


def test_sizes_decide_what_is_left_out():
    assert numbers([(1, 8, 8), (1, 2, 2)], [(1, 16, 16), (1, 8, 8), (1, 4, 4)]) == [(1, 2), (2, 3)]


def test_equal_sizes_are_decided_by_depth():
    flat = [(1, 4, 4)]
    assert numbers(flat * 2, flat * 4) == [(1, 2), (2, 4)]
    assert numbers(flat, flat * 4) == [(1, 4)]


def test_a_pair_says_what_it_is():
    assert str(pair_stages(VGG, RESNET)[2]) == "student stage 4 512x4x4 with teacher stage 3 256x8x8"


@pytest.mark.parametrize(("student", "teacher"), [("vgg8", "resnet32x4"), ("MobileNetV2", "ResNet50")])
def test_networks(student, teacher):
    ends = [NetInfo.of(models.build(name), 32) for name in (student, teacher)]
    pairs = Setup(*ends, num_samples=1, image_size=32).pairs
    assert len(pairs) == min(len(end.stages) for end in ends)
    for pair in pairs:
        assert pair.student_shape == ends[0].stages[pair.student_stage - 1]
        assert pair.teacher_shape == ends[1].stages[pair.teacher_stage - 1]
