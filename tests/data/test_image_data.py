from __future__ import annotations

import dataclasses

import pytest
import torch
from batches import joined
from PIL import Image

from sftn_fast import data
from sftn_fast.config import ConfigError, DataConfig
from sftn_fast.data import image_data, source

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))]


def build(name="fake", *, seed=0, batch_size=32, device="cpu", rank=0, world_size=1, **options):
    config = DataConfig(name, **options)
    return data.build(config, seed=seed, batch_size=batch_size, device=device, rank=rank, world_size=world_size)


@pytest.mark.parametrize(
    ("name", "classes", "channels", "size", "train", "test"),
    [("digits", 10, 1, 8, 1000, 797), ("fake", 10, 3, 32, 512, 256)],
)
def test_what_a_network_has_to_know(name, classes, channels, size, train, test):
    images = build(name)
    assert (images.name, images.num_classes, images.in_channels, images.image_size) == (name, classes, channels, size)
    assert (images.num_train, images.test.num_samples, images.val) == (train, test, None)
    batch = next(images.train.epoch(0))
    assert batch.images.shape == (32, channels, size, size)


@pytest.mark.parametrize("device", DEVICES)
def test_images_are_kept_as_bytes_on_the_device(device):
    images = build(device=device, val_size=20)
    for loader in (images.train, images.val, images.test):
        assert loader.data.pixels.dtype == torch.uint8
        assert loader.data.pixels.device.type == device
        batch = next(loader.epoch(0)) if loader is images.train else next(iter(loader))
        assert {tensor.device.type for tensor in (batch.images, batch.target, batch.index)} == {device}


def test_normalised_training_images_have_zero_mean_and_unit_deviation():
    pixels = joined(build("digits", crop_padding=0).train.epoch(0))[0]
    # 8 of the 1000 images are in the partial batch that is kept
    assert len(pixels) == 1000
    torch.testing.assert_close(torch.stack([pixels.mean(), pixels.std()]), torch.tensor([0.0, 1.0]), rtol=0, atol=1e-3)


def test_null_means_the_data_sets_own_augmentation():
    own = build("digits").train
    assert (own.crop_padding, own.flip) == (1, False)
    chosen = build("digits", crop_padding=0, flip=True).train
    assert (chosen.crop_padding, chosen.flip) == (0, True)


@pytest.mark.parametrize("size", [8, 16, 17, 48])
def test_resizing_is_torchvisions(size):
    resize = pytest.importorskip("torchvision.transforms.v2.functional").resize
    original, resized = build(), build(image_size=size)
    assert resized.image_size == size
    for split in ("train", "test"):
        before, after = (getattr(images, split).data.pixels for images in (original, resized))
        expected = resize(before.double(), [size, size], antialias=True)
        # Bytes are resized with 8-bit weights, so the result may be one level off.
        assert (after.double() - expected).abs().max() <= 1.5


def test_digits_of_the_size_of_cifar():
    batch = next(build("digits", image_size=32).train.epoch(0))
    assert batch.images.shape == (32, 1, 32, 32)


def test_splits_are_disjoint_and_the_index_counts_the_training_images():
    images = build("digits", train_size=300, val_size=100, crop_padding=0)
    assert (images.num_train, images.val.num_samples, images.test.num_samples) == (300, 100, 797)
    pixels, target, index = joined(images.train.epoch(0))
    assert sorted(index.tolist()) == list(range(300))
    other_pixels, other_target, other_index = joined(images.train.epoch(1))
    order, other_order = index.argsort(), other_index.argsort()
    assert torch.equal(pixels[order], other_pixels[other_order])
    assert torch.equal(target[order], other_target[other_order])
    splits = [images.train.data.pixels, images.val.data.pixels, images.test.data.pixels]
    assert len(torch.cat(splits).unique(dim=0)) == sum(map(len, splits))
    assert images.train.data.labels.bincount().tolist() == [30] * 10
    assert images.val.data.labels.bincount().tolist() == [10] * 10


def test_students_get_a_balanced_part_of_the_training_images():
    whole, images = (build("digits", train_size=300, val_size=40, student_size=size) for size in (None, 50))
    students = images.of_students
    assert whole.of_students is None and images.fingerprint() == whole.fingerprint()
    assert (images.num_train, students.num_train) == (300, 50)
    assert students.train_labels.bincount().tolist() == [5] * 10
    both = torch.cat([images.train.data.pixels, students.train.data.pixels])
    assert len(both.unique(dim=0)) == len(images.train.data.pixels.unique(dim=0)) == 300
    assert (students.val, students.test) == (images.val, images.test)
    assert students.fingerprint()["content"] != images.fingerprint()["content"]


def test_the_images_of_students_are_not_loaded_again(monkeypatch):
    loaded = []
    monkeypatch.setattr(image_data, "load", lambda config: loaded.append(config) or source.load(config))
    assert build("digits", student_size=50).of_students is not None and len(loaded) == 1


def test_the_seed_changes_the_order_and_not_the_splits():
    first, second = (build(seed=seed, train_size=100, val_size=50) for seed in (0, 1))
    for split in ("train", "val", "test"):
        assert torch.equal(getattr(first, split).data.pixels, getattr(second, split).data.pixels)
    assert not torch.equal(joined(first.train.epoch(0))[2], joined(second.train.epoch(0))[2])


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_together_see_what_one_sees(world_size):
    options = {"batch_size": 30, "train_size": 300, "val_size": 31}
    single = build(**options)
    ranks = [build(**options, rank=rank, world_size=world_size) for rank in range(world_size)]
    shares = [share for step in zip(*(images.train.epoch(2) for images in ranks), strict=True) for share in step]
    assert all(map(torch.equal, joined(shares), joined(single.train.epoch(2))))
    for split in ("val", "test"):
        shards = [batch for images in ranks for batch in getattr(images, split)]
        assert all(map(torch.equal, joined(shards), joined(getattr(single, split))))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train_size": 1001}, "data.train_size must be at most 1000"),
        ({"val_size": 1000}, "data.val_size must be at most 998"),
        ({"train_size": 950, "val_size": 100}, "data.train_size must be at most 900"),
        ({"student_size": 1001}, "data.student_size must be at most 1000, the training images, got 1001"),
        ({"student_size": 901, "val_size": 100}, "data.student_size must be at most 900, the training images"),
        ({"student_size": 51, "train_size": 50}, "data.student_size must be at most data.train_size=50, got 51"),
        ({"student_size": 1}, "data.student_size must be at least 2, got 1"),
        ({"batch_size": 9, "world_size": 2}, "optim.batch_size must be divisible by the 2 ranks, got 9"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        build("digits", **options)


def test_the_fingerprint_is_the_same_for_every_seed_and_rank():
    prints = [build(seed=seed, rank=rank, world_size=2).fingerprint() for seed in (0, 1) for rank in (0, 1)]
    assert all(one == prints[0] for one in prints)
    assert all(type(value) in (str, int) for value in prints[0].values())


@pytest.mark.parametrize(
    ("options", "changed"),
    [
        ({"train_size": 500}, {"num_train", "content"}),
        ({"val_size": 10}, {"num_train", "num_val", "content"}),
        ({"image_size": 16}, {"image_size", "content"}),
        ({"crop_padding": 1}, {"crop_padding"}),
        ({"flip": True}, {"flip"}),
    ],
)
def test_the_fingerprint_tells_what_differs(options, changed):
    before, after = build().fingerprint(), build(**options).fingerprint()
    assert {key for key in before if before[key] != after[key]} == changed


@pytest.mark.parametrize("part", ["pixels", "labels"])
@pytest.mark.parametrize("split", ["train", "test"])
def test_the_fingerprint_notices_a_single_changed_value(split, part, monkeypatch):
    before = build().fingerprint()
    source = data.source.load(DataConfig("fake"))
    tensor = getattr(getattr(source, split), part)
    tensor.view(-1)[-1] = (int(tensor.view(-1)[-1]) + 1) % 10
    monkeypatch.setattr(data.image_data, "load", lambda config: source)
    assert {key for key, value in build().fingerprint().items() if before[key] != value} == {"content"}


def test_the_test_images_are_the_same_however_they_are_prepared():
    options = ({"train_size": 500}, {"val_size": 10}, {"image_size": 16}, {"crop_padding": 1}, {"flip": True})
    assert {build(**each).test_content for each in options} == {build().test_content}
    assert build("digits").test_content != build().test_content


@pytest.mark.parametrize("split", ["train", "test"])
def test_other_test_images_are_noticed(split, monkeypatch):
    before = build().test_content
    source = data.source.load(DataConfig("fake"))
    pixels = getattr(source, split).pixels.view(-1)
    pixels[-1] = (int(pixels[-1]) + 1) % 10
    monkeypatch.setattr(data.image_data, "load", lambda config: source)
    assert (build().test_content != before) == (split == "test")


def test_other_test_files_are_noticed(tmp_path):
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(4):
                pixels = torch.full((8, 8, 3), number, dtype=torch.uint8).numpy()
                Image.fromarray(pixels).save(tmp_path / split / name / f"{number}.png")

    def content(**options: object) -> str:
        return build("folder", root=str(tmp_path), loader="torchvision", batch_size=2, **options).test_content

    before = content(image_size=8)
    assert before == content(image_size=16, train_size=4)
    Image.new("RGB", (64, 64)).save(tmp_path / "val" / "cat" / "0.png")
    resized = content(image_size=8)
    (tmp_path / "val" / "dog" / "3.png").rename(tmp_path / "val" / "dog" / "4.png")
    assert len({before, resized, content(image_size=8)}) == 3


def test_what_is_built_can_not_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        build().num_classes = 3


def test_several_views_of_an_image():
    images = build()
    assert images.with_views(1) is images
    assert next(images.with_views(2).train.epoch(0)).images.shape == (32, 2, 3, 32, 32)
    other = dataclasses.replace(images, train=object())
    with pytest.raises(ConfigError, match="own_views must be false for fake, whose loader gives one view per image"):
        other.with_views(2)
