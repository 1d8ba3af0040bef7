"""Notices about the classes of a folder of images, and folders without a test split."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("PIL.Image")
import pictures

from sftn_fast import cli, data
from sftn_fast.config import ConfigError, DataConfig
from sftn_fast.data.source import load
from sftn_fast.data.sources import cifar, fashion_mnist, stl10
from sftn_fast.data.sources.fake import load_fake


def make(root, counts, test=None, split="train"):
    """Write ``counts`` images of each class."""
    for part, numbers in ((split, counts), *([("val", test)] if test else [])):
        for name, count in numbers.items():
            for i in range(count):
                pictures.write(root / part / name / f"{i}.png", pictures.noise((8, 8), i))
    return root


def build(root, batch_size=4, **options):
    config = DataConfig("folder", root=str(root), **({"image_size": 8} | options))
    return data.build(config, seed=0, batch_size=batch_size, device="cpu")


def test_names_and_counts_are_printed_and_known(tmp_path, capsys):
    images = build(make(tmp_path, {"dog": 5, "cat": 4}, {"cat": 2, "dog": 3}))
    assert images.class_names == ("cat", "dog")
    captured = capsys.readouterr()
    counts = "2 classes, 9 + 5 images to train and to test on: cat 4 + 2, dog 5 + 3"
    assert captured.out == f"folder in {tmp_path}: {counts}\n" and captured.err == ""


def test_many_classes_are_summed_up(tmp_path, capsys):
    counts = {f"class {i:02}": 2 + (i == 7) for i in range(20)}
    build(make(tmp_path, counts, dict.fromkeys(counts, 1)))
    line = capsys.readouterr().out
    assert "20 classes, 41 + 20 images to train and to test on, 2 to 3 + 1 a class: class 00, class 01" in line
    assert line.endswith("class 04 and 15 more\n")


def test_great_odds_are_warned_of(tmp_path, capsys):
    build(make(tmp_path, {"cat": 20, "dog": 2}, {"cat": 2, "dog": 1}))
    warning = capsys.readouterr().err
    assert "warning: the train images are unbalanced: 20 of class cat, 2 of dog" in warning and warning.count("\n") == 1


def test_fewer_images_than_a_batch_are_warned_of(tmp_path, capsys):
    images = build(make(tmp_path, {"cat": 9, "dog": 8}, {"cat": 2, "dog": 1}), batch_size=64)
    assert len(images.train) == 1
    assert "warning: 17 training images are fewer than optim.batch_size=64" in capsys.readouterr().err


def test_classes_that_validation_lacks_are_warned_of(tmp_path, capsys):
    root = make(tmp_path, {"a": 4, "b": 4, "c": 4}, {"a": 1, "b": 1, "c": 1})
    assert build(root, val_size=2).val.num_samples == 2
    assert "data.val_size=2 holds out images of only 2 of the 3 classes" in capsys.readouterr().err
    build(root, val_size=3)
    assert "only" not in capsys.readouterr().err


@pytest.mark.parametrize("loader", ["memory", "torchvision"])
@pytest.mark.parametrize("layout", ["train alone", "classes alone"])
def test_without_a_folder_to_test_on_the_images_held_out_are_tested_on(layout, loader, tmp_path, capsys):
    pytest.importorskip("torchvision.io")
    counts = {"cat": 12, "dog": 13}
    for name, count in counts.items():
        for i in range(count):
            part = tmp_path / "train" if layout == "train alone" else tmp_path
            pictures.write(part / name / f"{i}.png", pictures.noise((8, 8), i))
    if layout == "classes alone":
        pictures.write(tmp_path / "@eaDir" / "x.png")
    with pytest.raises(ConfigError) as error:
        build(tmp_path, loader=loader)
    message = str(error.value)
    assert f"in {tmp_path}" in message and "train/CLASS/IMAGE.jpg" in message
    assert message.endswith("set images apart for the test: --data.val_size 5 of the 25") or "@eaDir" not in message
    assert "--data.val_size 5 of the 2" in message and "\n" not in message
    assert ("which has the class folders cat, dog itself" in message) == (layout == "classes alone")

    images = build(tmp_path, loader=loader, val_size=6)
    assert (images.num_train, images.val, images.test.num_samples) == (19, None, 6)
    assert images.test.num_samples == 6 and images.class_names == ("cat", "dog")
    labels = images.test.data.labels if loader == "memory" else images.test.files.labels
    assert labels.bincount().tolist() == [3, 3]
    assert "testing on 6 training images, held out class by class" in capsys.readouterr().err
    again = build(tmp_path, loader=loader, val_size=6)
    assert images.fingerprint() == again.fingerprint()
    assert images.fingerprint() != build(tmp_path, loader=loader, val_size=7).fingerprint()


def test_no_image_is_both_trained_and_tested_on(tmp_path):
    root = make(tmp_path, {"cat": 12, "dog": 13})
    images = build(root, val_size=6, train_size=19)
    pixels = [split.data.pixels.flatten(1) for split in (images.train, images.test)]
    by_class = [
        p * 1000 + split.data.labels[:, None] for p, split in zip(pixels, (images.train, images.test), strict=True)
    ]
    assert not (by_class[0].int()[:, None] == by_class[1].int()[None]).all(2).any()
    with pytest.raises(ConfigError, match=r"data.train_size must be at most 19 "):
        build(root, val_size=6, train_size=20)


@pytest.mark.parametrize("held", ["nothing", "one class", "files"])
def test_a_folder_that_can_not_be_split(held, tmp_path):
    if held == "one class":
        make(tmp_path, {"cat": 9}, split="")
    if held == "files":
        pictures.write(tmp_path / "a.png")
    for val_size in (0, 5):
        with pytest.raises(ConfigError, match=f"no folder train in {tmp_path}.*; data.root must contain train/CLASS"):
            build(tmp_path, val_size=val_size)


def test_names_of_other_data_sets():
    assert len(set(cifar.CIFAR100.split())) == 100 and cifar.CIFAR100.split() == sorted(cifar.CIFAR100.split())
    assert cifar.CIFAR10.split()[9] == "truck" and len(stl10.CLASSES) == len(fashion_mnist.CLASSES) == 10
    datasets = pytest.importorskip("torchvision.datasets")
    assert list(fashion_mnist.CLASSES) == datasets.FashionMNIST.classes
    assert len(load_fake(DataConfig("fake")).class_names) == 10
    pytest.importorskip("sklearn")
    assert load(DataConfig("digits")).class_names == tuple("0123456789")


def test_as_many_names_as_classes():
    source = load_fake(DataConfig("fake"))
    with pytest.raises(ValueError, match="2 names for 10 classes"):
        type(source)(**{**vars(source), "class_names": ("a", "b")})


def test_the_recipe_for_a_folder_suits_a_small_one(tmp_path):
    """Unchanged, it trains on 120 images of three classes, without settings left over from the demo."""
    config, _ = cli.parse(["--config", "folder", "--data.root", str(tmp_path)])
    assert config.data.name == "folder" and config.data.train_size is None
    assert config.optim.batch_size <= 120 // 4 and config.epochs >= 30 and config.data.image_size >= 32
    make(tmp_path, dict.fromkeys("abc", 34), dict.fromkeys("abc", 6))
    images = data.build(config.data, seed=0, batch_size=config.optim.batch_size, device=torch.device("cpu"))
    assert images.num_train == 102 and np.isfinite(next(images.train.epoch(0)).images).all()
