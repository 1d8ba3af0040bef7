"""Mixed images: the formulas against plain ones, and draws that are a function of seed, epoch and step alone."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from batches import rng_states, same
from torch import Tensor

from sftn_fast import data, ops
from sftn_fast.config import ConfigError, DataConfig
from sftn_fast.data import Batch, labels_of
from sftn_fast.data.loaders import DeviceImages, TrainLoader
from sftn_fast.data.mixing import MixedLoader, Mixing
from sftn_fast.data.source import Images

CLASSES, SIZE, CPU = 7, 8, torch.device("cpu")
KINDS = {"mixup": {"mixup": 1.0}, "cutmix": {"cutmix": 1.0}, "both": {"mixup": 0.4, "cutmix": 1.0}}


def mixing(size: int = SIZE, **options: float) -> Mixing:
    found = Mixing.of(DataConfig("fake", **options), torch.arange(CLASSES), CLASSES, size)
    assert found is not None
    return found


def a_batch(count: int, *views: int) -> Batch:
    draws = torch.Generator().manual_seed(count)
    images = torch.randn(count, *views, 3, SIZE, SIZE, generator=draws)
    return Batch(images, torch.randint(CLASSES, (count,), generator=draws), 100 + torch.arange(count))


def plainly_mixed(batch: Batch, draw: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
    """Mix image by image and pixel by pixel, as the papers write it."""
    share_of_pixels, share, top, bottom, left, right = draw.tolist()
    images, targets = batch.images.clone(), torch.zeros(len(batch.target), CLASSES)
    for i in range(len(images)):
        other = i + 1 if i % 2 == 0 else i - 1
        other = i if other == len(images) else other
        for row in range(SIZE):
            for column in range(SIZE):
                s = 1.0 if top <= row < bottom and left <= column < right else share_of_pixels
                own, theirs = batch.images[i, ..., row, column], batch.images[other, ..., row, column]
                images[i, ..., row, column] = (1 - s) * own + s * theirs
        targets[i] += (1 - share) * F.one_hot(batch.target[i], CLASSES)
        targets[i] += share * F.one_hot(batch.target[other], CLASSES)
    return images, (1 - smoothing) * targets + smoothing / CLASSES


@pytest.mark.parametrize("views", [(), (2,)])
@pytest.mark.parametrize("count", [2, 5, 6])
@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_is_mixed_as_the_formulas_say(kind, count, views):
    mix, batch = mixing(**KINDS[kind], label_smoothing=0.1), a_batch(count, *views)
    for draw in mix.draw(0, 0, 4):
        mixed = mix(batch, draw)
        images, target = plainly_mixed(batch, draw, 0.1)
        torch.testing.assert_close(mixed.images, images)
        torch.testing.assert_close(mixed.target, target)
        torch.testing.assert_close(mixed.target.sum(1), torch.ones(count))


def test_cutmix_corrects_the_share_for_the_border():
    draws = mixing(cutmix=1.0).draw(3, 1, 500)
    height, width = draws[:, 3] - draws[:, 2], draws[:, 5] - draws[:, 4]
    assert torch.equal(draws[:, 1], height * width / SIZE**2)
    assert torch.equal(draws[:, 0], torch.zeros(500)), "outside of the box, pixels stay as they are"
    assert draws[:, 2:].min() == 0 and draws[:, 2:].max() == SIZE
    assert (height != width).any(), "the border cuts some boxes"
    mix, batch = mixing(cutmix=1.0), a_batch(4)
    for draw in draws[:20]:
        replaced = (mix(batch, draw).images != batch.images).float().mean()
        assert replaced == draw[1], "the share of the target is that of the pixels"


@pytest.mark.parametrize(("alpha", "deviation"), [(1.0, 1 / math.sqrt(12)), (0.2, 0.5 / math.sqrt(1.4))])
def test_shares_are_those_of_the_beta_distribution(alpha, deviation):
    shares = mixing(mixup=alpha).draw(0, 0, 4000)[:, 1]
    assert shares.mean().item() == pytest.approx(0.5, abs=0.02)
    assert shares.std().item() == pytest.approx(deviation, abs=0.02)
    boxes = mixing(size=512, cutmix=alpha).draw(0, 0, 4000)
    whole = (boxes[:, 2:] % 512 != 0).all(1)  # boxes that the border does not cut: smaller ones more often
    assert 0 < boxes[whole, 1].mean() < boxes[:, 1].mean() < 0.5


def test_the_probabilities_decide_how_often_and_how():
    draws = mixing(mixup=1.0, cutmix=1.0, mixup_prob=0.6, mixup_switch_prob=0.25).draw(0, 0, 4000)
    blended, cut = draws[:, 0] > 0, draws[:, 3] > draws[:, 2]
    assert not (blended & cut).any()
    assert blended.float().mean().item() == pytest.approx(0.6 * 0.75, abs=0.03)
    # A box of less than two pixels is empty: the root of its share is below 2 / 8.
    assert cut.float().mean().item() == pytest.approx(0.6 * 0.25 * (1 - 1 / 16), abs=0.03)
    assert (mixing(mixup=1.0, cutmix=1.0, mixup_switch_prob=1.0).draw(0, 0, 100)[:, 0] == 0).all()
    assert (mixing(mixup=1.0, mixup_prob=0.0).draw(0, 0, 100) == 0).all()


def test_an_unmixed_step_leaves_the_bits_of_the_images():
    batch, mix = a_batch(5), mixing(mixup=1.0, mixup_prob=0.0)
    (draw,) = mix.draw(0, 0, 1)
    mixed = mix(batch, draw)
    assert torch.equal(mixed.images, batch.images) and torch.equal(mixed.index, batch.index)
    assert torch.equal(mixed.target, F.one_hot(batch.target, CLASSES).float())


def test_the_index_is_that_of_the_image_with_the_larger_share():
    mix, batch = mixing(mixup=1.0), a_batch(5)
    swapped = set()
    for draw in mix.draw(1, 0, 20):
        mixed = mix(batch, draw)
        labels = batch.target[mixed.index - 100]
        assert torch.equal(labels_of(mixed.target), labels)
        assert sorted(mixed.index.tolist()) == batch.index.tolist(), "each image once"
        swapped.add(bool(draw[1] > 0.5))
    assert swapped == {True, False}


def test_smoothing_alone_is_that_of_cross_entropy():
    mix, batch, logits = mixing(label_smoothing=0.2), a_batch(5), torch.randn(5, CLASSES)
    (draw,) = mix.draw(0, 0, 1)
    smoothed = mix(batch, draw)
    assert smoothed.images is batch.images and smoothed.index is batch.index
    torch.testing.assert_close(
        F.cross_entropy(logits, smoothed.target), F.cross_entropy(logits, batch.target, label_smoothing=0.2)
    )
    assert torch.equal(labels_of(smoothed.target), batch.target)


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}])
@pytest.mark.parametrize("weights", ["balanced", (4.0, 1.0, 2.0)])
def test_class_weights_are_those_of_cross_entropy(weights, options):
    labels = torch.tensor([0, 1, 1, 2, 2, 2, 2, 2])
    mix = Mixing.of(DataConfig("fake", class_weights=weights, **options), labels, 3, SIZE)
    assert mix is not None
    batch = Batch(torch.zeros(8, 3, SIZE, SIZE), labels, torch.arange(8))
    (draw,) = mix.draw(0, 0, 1)
    student, teacher = torch.randn(2, 8, 3)
    given = torch.tensor([8.0, 4.0, 1.6] if weights == "balanced" else weights)
    each = F.cross_entropy(student, labels, reduction="none", **options) * given[labels]
    expected = each.sum() / given[labels].sum()  # over all images, as torch has it over a batch
    target = mix(batch, draw).target
    torch.testing.assert_close(F.cross_entropy(student, target), expected)
    torch.testing.assert_close(ops.kd_ce_loss(student, teacher, target).ce, expected)
    torch.testing.assert_close(ops.sftn_loss(student, [teacher], target).teacher_ce, expected)
    assert torch.equal(labels_of(target), labels)


def test_the_weight_of_a_mixed_image_is_mixed_and_its_label_is_not():
    labels = torch.tensor([0, 1])
    mix = Mixing.of(DataConfig("fake", cutmix=1.0, class_weights=(1.0, 1000.0)), labels, 2, SIZE)
    assert mix is not None
    batch = Batch(torch.zeros(2, 3, SIZE, SIZE), labels, torch.arange(2))
    target = mix(batch, torch.tensor([0, 0.25, 0, 4, 0, 4])).target
    one, other = 2 / 1001, 2000 / 1001  # a mean of 1
    expected = torch.tensor([[0.75, 0.25], [0.25, 0.75]]) * torch.tensor(
        [[0.75 * one + 0.25 * other], [0.25 * one + 0.75 * other]]
    )
    torch.testing.assert_close(target, expected)
    assert labels_of(target).tolist() == [0, 1]


@pytest.mark.parametrize(("weights", "shown"), [((1.0, 2.0), r"\[1.0, 2.0\]"), ((), r"\[\]")])
def test_weights_for_other_classes_are_refused(weights, shown):
    with pytest.raises(ConfigError, match=f"data.class_weights must be none, balanced or 3 numbers, .*, got {shown}$"):
        Mixing.of(DataConfig("fake", class_weights=weights), torch.tensor([0, 1, 2]), 3, SIZE)


def test_one_label_is_taken_of_either_kind_of_target():
    labels = torch.tensor([2, 0, 1])
    assert labels_of(labels) is labels
    assert labels_of(torch.tensor([[0.1, 0.3, 0.6], [0.7, 0.0, 0.3]])).tolist() == [2, 0]


def loader(count: int = 50, seed: int = 0, batch_size: int = 8, **ranks: int) -> TrainLoader:
    draws = torch.Generator().manual_seed(count)
    pixels = torch.randint(256, (count, 3, SIZE, SIZE), generator=draws, dtype=torch.uint8)
    labels = torch.randint(CLASSES, (count,), generator=draws)
    images = DeviceImages.place(Images(pixels, labels), (0.4, 0.5, 0.6), (0.2, 0.25, 0.3), CPU)
    return TrainLoader(images, seed=seed, batch_size=batch_size, crop_padding=2, flip=True, **ranks)


def mixed(seed: int = 0, **options: int) -> MixedLoader:
    return MixedLoader(loader(seed=seed, **options), mixing(mixup=0.4, cutmix=1.0))


@pytest.mark.parametrize("start", range(8))  # 6 full steps and a partial one; 7 is the epoch's end
def test_an_epoch_resumed_at_any_step_has_the_same_bits(start):
    before = rng_states()
    whole, resumed = list(mixed().epoch(2)), list(mixed().epoch(2, start))
    assert rng_states() == before, "the global generators stay where they are"
    assert len(resumed) == len(mixed()) - start
    assert start == len(whole) or same(whole[start:], resumed)
    with pytest.raises(ValueError, match="start must be from 0 to 7, got 8"):
        mixed().epoch(2, 8)


def test_seed_epoch_and_step_change_the_mixture():
    draws = [mixing(mixup=1.0).draw(seed, epoch, 3) for seed in (0, 1) for epoch in (0, 1)]
    assert len({share for draw in draws for share in draw[:, 1].tolist()}) == 12


def test_other_augmentation_and_order_stay_the_same():
    for plain, ours in zip(loader().epoch(1), MixedLoader(loader(), mixing(cutmix=1.0)).epoch(1), strict=True):
        assert sorted(plain.index.tolist()) == sorted(ours.index.tolist())
        pixels = (plain.images == ours.images).all(1)
        assert pixels.any() and not pixels.all(), "boxes of other images, and the rest as it was"


def test_turning_cutmix_on_leaves_the_weights_of_mixup_alone():
    alone = mixing(mixup=0.4).draw(0, 0, 200)
    beside = mixing(mixup=0.4, cutmix=1.0).draw(0, 0, 200)
    blended = beside[:, 0] > 0
    assert torch.equal(alone[blended], beside[blended])


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_see_together_what_one_sees(ranks):
    # 48 images in batches of 16: shares of 8 or 4. The mixture is the same, and partners are within a share.
    alone = list(mixed(count=48, batch_size=16).epoch(0))
    shares = [list(mixed(count=48, batch_size=16, rank=r, world_size=ranks).epoch(0)) for r in range(ranks)]
    for step, whole in enumerate(alone):
        for field in ("images", "target", "index"):
            together = torch.cat([getattr(share[step], field) for share in shares])
            assert torch.equal(together, getattr(whole, field))


def test_channels_last_images_stay_so():
    batch, mix = a_batch(4), mixing(mixup=1.0)
    batch = dataclasses.replace(batch, images=batch.images.contiguous(memory_format=torch.channels_last))
    (draw,) = mix.draw(0, 0, 1)
    assert mix(batch, draw).images.is_contiguous(memory_format=torch.channels_last)


def build(**options: object) -> data.ImageData:
    return data.build(DataConfig("fake", train_size=20, image_size=8, **options), seed=0, batch_size=4, device="cpu")


def test_a_data_set_is_mixed_for_training_only():
    images = build(cutmix=1.0)
    assert images.mixed().train.loader is images.train
    assert images.mixed().num_train == 20 and images.mixed().test is images.test
    assert next(images.mixed().train.epoch(0)).target.shape == (4, images.num_classes)
    assert next(iter(images.test)).target.dtype == torch.int64
    plain = build()
    assert plain.mixed() is plain
    part = build(cutmix=1.0, student_size=10).of_students
    assert part is not None and part.mixed().num_train == 10 and next(part.mixed().train.epoch(0)).target.dim() == 2


def test_teachers_learn_from_plain_images_if_mixing_is_for_students():
    for_students = build(cutmix=1.0, mixed="students")
    assert for_students.of_teachers().mixing is None and for_students.mixing is not None
    assert for_students.of_teachers().fingerprint() == build().fingerprint()
    assert (mixed := build(cutmix=1.0)).of_teachers() is mixed


@pytest.mark.parametrize(
    ("options", "changed"),
    [
        ({}, {}),
        ({"label_smoothing": 0.1}, {"label_smoothing": 0.1}),
        ({"mixup": 0.2}, {"mixup": 0.2, "cutmix": 0.0, "mixup_prob": 1.0, "mixup_switch_prob": 0.5}),
        ({"mixup": 0.2, "mixup_prob": 0.5}, {"mixup": 0.2, "cutmix": 0.0, "mixup_prob": 0.5, "mixup_switch_prob": 0.5}),
    ],
)
def test_the_fingerprint_has_the_settings_in_effect(options, changed):
    assert build(**options).fingerprint() == build().fingerprint() | changed


@pytest.mark.parametrize("alpha", [1e-320, 1e-3, 1e10, 1e308])
def test_any_alpha_gives_shares(alpha):
    draws = mixing(mixup=alpha, cutmix=alpha).draw(0, 0, 50)
    assert torch.isfinite(draws).all() and (draws[:, :2] >= 0).all() and (draws[:, :2] <= 1).all()
    assert np.isin(draws[:, 2:].numpy(), range(SIZE + 1)).all()
