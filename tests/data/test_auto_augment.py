"""Policies of operations: torchvision's operations and magnitudes, drawn by a key and applied in groups."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sftn_fast.config import MAX_LEVEL, ConfigError, DataConfig
from sftn_fast.data.auto_augment import FUNCTIONS, SPACES, Policy, operators, policy_of, require_operators
from sftn_fast.data.seeding import generator

v2 = pytest.importorskip("torchvision.transforms.v2")

THEIRS = {"randaugment": v2.RandAugment(), "trivialaugment": v2.TrivialAugmentWide()}
NAMES = {
    "shift_x": "TranslateX",
    "shift_y": "TranslateY",
    "autocontrast": "AutoContrast",
    "rotate": "Rotate",
}
POLICIES = [Policy("randaugment", 2, 9), Policy("trivialaugment", 1), Policy("strong", 2)]


def pixels(count, channels=3, size=12):
    return torch.randint(256, (count, channels, size, size), generator=torch.Generator().manual_seed(0)).byte()


def theirs_of(operation):
    return NAMES.get(operation.name, "".join(part.capitalize() for part in operation.name.split("_")))


@pytest.mark.parametrize("space", THEIRS)
def test_operations_are_those_of_torchvision(space):
    """In names, order, signs and magnitudes, and in what a magnitude does."""
    table = THEIRS[space]._AUGMENTATION_SPACE
    assert [theirs_of(operation) for operation in SPACES[space]] == list(table)
    image = pixels(1, size=32)
    for operation, (magnitudes, signed) in zip(SPACES[space], table.values(), strict=True):
        assert operation.signed == signed
        magnitudes = magnitudes(MAX_LEVEL + 1, 32, 32)
        for level in (0, 9, MAX_LEVEL):
            expected = 0.0 if magnitudes is None else float(magnitudes[level])
            ours = operation.magnitude(level)
            shown = (
                round(ours) if operation.name == "posterize" else ours * (32 if "translate" in operation.name else 1)
            )
            assert shown == pytest.approx(expected, rel=1e-6)
            for sign in (1, -1) if signed else (1,):
                changed = THEIRS[space]._apply_image_or_video_transform(
                    image, theirs_of(operation), sign * expected, v2.InterpolationMode.NEAREST, {}
                )
                found = FUNCTIONS[operation.name](operators(), image, sign * ours)
                assert (found != changed).float().mean() < 0.01  # where rounding of the magnitude moves a pixel


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.space)
@pytest.mark.parametrize("channels", [1, 3])
def test_images_are_changed_apart_whatever_their_neighbours(policy, channels):
    images, codes = pixels(40, channels), policy.draw(generator(1), 40)
    before = images.clone()
    together = policy.apply(images, codes)
    assert torch.equal(images, before) and together.dtype == torch.uint8
    apart = [policy.apply(images[i : i + 1], codes[:, i : i + 1]) for i in range(40)]
    assert torch.equal(together, torch.cat(apart))
    assert (together != images).flatten(1).any(1).float().mean() > 0.5


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.space)
def test_every_operation_is_drawn_alike_with_either_sign(policy):
    codes = policy.draw(generator(2), 14_000)
    assert codes.shape == (policy.ops, 14_000)
    rest, negative = codes // 2, codes % 2
    chosen, level = rest // (MAX_LEVEL + 1), rest % (MAX_LEVEL + 1)
    for number, operation in enumerate(SPACES[policy.space]):
        mine = chosen == number
        assert abs(mine.sum(1) - 1000).max() < 150  # five standard deviations
        assert negative[mine].mean() == pytest.approx(0.5 * operation.signed, abs=0.1)
        levels = {0} if operation.low == operation.high else {policy.level}
        assert set(level[mine]) == (set(range(MAX_LEVEL + 1)) if levels == {None} else levels)


def test_a_later_operation_changes_what_an_earlier_one_left():
    space = [operation.name for operation in SPACES["randaugment"]]
    solarize, posterize = ((space.index(name) * (MAX_LEVEL + 1) + 30) * 2 for name in ("solarize", "posterize"))
    images = pixels(3)
    found = Policy("randaugment", 2).apply(images, np.array([[solarize] * 3, [posterize] * 3]))
    assert torch.equal(found, (255 - images) & 0b11110000)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, None),
        ({"auto_augment": "trivialaugment"}, Policy("trivialaugment", 1)),
        ({"auto_augment": "randaugment"}, Policy("randaugment", 2, 9)),
        ({"auto_augment": "randaugment", "randaugment_ops": 3}, Policy("randaugment", 3, 9)),
        ({"auto_augment": "randaugment", "randaugment_magnitude": 0}, Policy("randaugment", 2, 0)),
    ],
)
def test_policies_of_configurations(options, expected):
    assert policy_of(DataConfig(**options), 3) == expected


def test_images_of_other_channels_are_refused():
    require_operators("it", 1)
    with pytest.raises(ConfigError, match=r"data\.auto_augment=randaugment takes images of 1 or 3 channels, got 2"):
        policy_of(DataConfig(auto_augment="randaugment"), 2)


def test_without_torchvision(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torchvision.transforms.v2.functional", None)
    assert policy_of(DataConfig(), 3) is None
    with pytest.raises(
        ConfigError, match=r"data\.auto_augment=trivialaugment needs torchvision.*pip install torchvision"
    ):
        policy_of(DataConfig(auto_augment="trivialaugment"), 3)
