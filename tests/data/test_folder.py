"""Image folders: the files and classes found, and the errors."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

pytest.importorskip("PIL.Image")
datasets = pytest.importorskip("torchvision.datasets")
import pictures  # noqa: E402

from sftn_fast import data, train  # noqa: E402
from sftn_fast.config import ConfigError, DataConfig  # noqa: E402
from sftn_fast.data.source import load  # noqa: E402

CLASSES = ("blue", "green", "red")
COUNT = 3  # images of each class


def make(root, *, test="val", classes=CLASSES, count=COUNT):
    for split in ("train", test):
        for name in classes:
            for i in range(count):
                pictures.write(root / split / name / f"{i}.png", pictures.draw(name, (10 + i, 12)))
    return root


def load_from(root, **options):
    return load(DataConfig("folder", root=str(root), **({"image_size": 8} | options)))


def refusal(root, **options):
    with pytest.raises(ConfigError) as error:
        load_from(root, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def colours_of(images):
    """Return the colour and the label of each image of a single colour."""
    return [(tuple(pixels[:, 4, 4].tolist()), int(label)) for pixels, label in zip(*vars(images).values(), strict=True)]


EXPECTED = [(pictures.COLOURS[name], label) for label, name in enumerate(CLASSES) for _ in range(COUNT)]


@pytest.mark.parametrize("test", ["val", "test"])
@pytest.mark.parametrize("folder", ["images", "with a space", "Bilder-für-später-画"])
def test_classes_are_the_train_folders_in_order(folder, test, tmp_path):
    source = load_from(make(tmp_path / folder, test=test))
    assert colours_of(source.train) == colours_of(source.test) == EXPECTED
    assert (source.num_classes, source.mean, source.std) == (3, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert (source.crop_padding, source.flip) == (1, True)


def test_classes_in_the_order_of_their_numbers(tmp_path):
    names = ["2", "10", "a2b3", "a2b10", "a10", "b", "x1", "x01"]
    for split in ("train", "val"):
        for number, name in enumerate(names):
            pictures.write(tmp_path / split / name / "0.png", pictures.draw("red", (8, 8 + number)))
    source = load_from(tmp_path, class_order="natural")
    assert source.class_names == ("2", "10", "a2b3", "a2b10", "a10", "b", "x01", "x1")
    assert sorted(source.class_names) == list(load_from(tmp_path).class_names) != list(source.class_names)
    assert source.train.labels.tolist() == source.test.labels.tolist() == list(range(len(names)))


def test_val_comes_before_test(tmp_path):
    make(make(tmp_path, test="test"), count=1)
    assert len(load_from(tmp_path).test.labels) == len(CLASSES)


def test_the_same_files_as_torchvision(tmp_path):
    make(tmp_path)
    pictures.write(tmp_path / "train" / "red" / "deeper" / "still" / "z.JPEG", pictures.draw("red"), format="PNG")
    (tmp_path / "train" / "red" / "notes.txt").write_text("not an image")
    theirs = datasets.ImageFolder(tmp_path / "train")
    source = load_from(tmp_path)
    assert source.train.labels.tolist() == theirs.targets
    assert len(theirs.targets) == 3 * COUNT + 1


def test_hidden_folders_and_files_are_no_classes_and_no_images(tmp_path):
    make(tmp_path)
    for hidden in (".a/x.png", "blue/.hidden.png", "blue/._0.png", "blue/.git/x.png", "red/.thumbnails/x.png"):
        pictures.write(tmp_path / "train" / hidden, pictures.draw("grey"), format="PNG")
    (tmp_path / "train" / ".empty").mkdir()
    assert colours_of(load_from(tmp_path).train) == EXPECTED


@pytest.mark.parametrize("link", ["loop", "red/loop", "red/deeper/loop"])
@pytest.mark.parametrize("target", [".", "..", "itself", "root"])
def test_a_loop_of_links_is_not_followed(link, target, tmp_path):
    make(tmp_path)
    loop = tmp_path / "train" / link
    loop.parent.mkdir(exist_ok=True)
    loop.symlink_to({"itself": loop, "root": tmp_path}.get(target, target))
    assert colours_of(load_from(tmp_path).train) == EXPECTED


def test_other_links_are_followed(tmp_path):
    make(tmp_path / "real")
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        for name in CLASSES:
            (tmp_path / split / name).symlink_to(tmp_path / "real" / split / name)
    extra = tmp_path / "train" / "red" / "9.png"
    extra.symlink_to(tmp_path / "real" / "val" / "red" / "0.png")
    assert colours_of(load_from(tmp_path).train) == [*EXPECTED, EXPECTED[-1]]


def test_an_empty_class_is_named(tmp_path):
    make(tmp_path)
    (tmp_path / "train" / "nothing").mkdir()
    (tmp_path / "val" / "nothing").mkdir()
    (tmp_path / "train" / "nothing" / "notes.txt").write_text("no image")
    message = refusal(tmp_path)
    assert str(tmp_path / "train") in message and "without images: nothing" in message


def test_many_empty_classes_are_counted(tmp_path):
    make(tmp_path)
    for split in ("train", "val"):
        for i in range(8):
            (tmp_path / split / f"empty{i}").mkdir()
    assert "empty0, empty1, empty2, empty3, empty4 and 3 more" in refusal(tmp_path)


@pytest.mark.parametrize(("split", "other"), [("train", "val"), ("val", "train")])
def test_classes_of_one_split_alone_are_named(split, other, tmp_path):
    make(tmp_path)
    for name in ("aardvark", "zebra"):
        pictures.write(tmp_path / split / name / "0.png")
    message = refusal(tmp_path)
    assert message.endswith(f"only {tmp_path / split} has aardvark, zebra") and str(tmp_path / other) in message


def test_a_flat_val_folder_is_explained(tmp_path):
    make(tmp_path, test="test")
    pictures.write(tmp_path / "val" / "0.png")
    assert f"{tmp_path / 'val'} has images, but no class folders" in refusal(tmp_path)


def test_no_images_and_no_folders(tmp_path):
    assert f"no folder train in {tmp_path}" in refusal(tmp_path)
    (tmp_path / "train").mkdir()
    assert f"no folder val or test in {tmp_path}" in refusal(tmp_path)
    (tmp_path / "val").mkdir()
    assert f"{tmp_path / 'train'} has no class folders" in refusal(tmp_path)


def test_the_size_must_be_given(tmp_path):
    assert "data.image_size must be given for data.name=folder" in refusal(make(tmp_path), image_size=None)


@pytest.mark.parametrize("kind", pictures.FAULTS)
@pytest.mark.parametrize("split", ["train", "val"])
def test_a_damaged_file_is_named_and_can_be_left_out(split, kind, tmp_path, capsys):
    make(tmp_path)
    path = pictures.damaged(tmp_path / split / "green" / "damaged.jpg", kind)
    message = refusal(tmp_path)
    assert str(path) in message and f"python -m sftn_fast.data.verify {tmp_path}" in message
    (tmp_path / "skip.txt").write_text(f"{split}/green/damaged.jpg\n")
    source = load_from(tmp_path)
    assert colours_of(source.train) == colours_of(source.test) == EXPECTED
    assert f"images skipped, as listed in {tmp_path / 'skip.txt'}: 1\n" in capsys.readouterr().err


def test_a_class_that_is_left_out_as_a_whole_is_empty(tmp_path):
    make(tmp_path, count=1)
    (tmp_path / "skip.txt").write_text("val/blue/0.png\n")
    assert f"{tmp_path / 'val'} has classes without images: blue" in refusal(tmp_path)


def test_built_for_training(tmp_path):
    make(tmp_path)
    config = DataConfig("folder", root=str(tmp_path), image_size=16)
    images = data.build(config, seed=0, batch_size=4, device="cpu")
    assert (images.num_classes, images.in_channels, images.image_size, images.num_train) == (3, 3, 16, 9)
    batch = next(iter(images.test))
    red = (torch.tensor(pictures.COLOURS["red"]) / 255 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor(
        [0.229, 0.224, 0.225]
    )
    torch.testing.assert_close(batch.images[-1, :, 3, 3], red)
    pictures.write(tmp_path / "train" / "red" / "0.png", pictures.noise())
    again = data.build(config, seed=0, batch_size=4, device="cpu")
    assert images.fingerprint() != again.fingerprint()


def test_trained_on_through_the_command_line(tmp_path, capsys):
    root = make(tmp_path / "my images", count=4)
    options = {"data.train_size": "null", "stages": "[student]", "epochs": 1, "seeds": "[0]", "optim.batch_size": 4}
    given = [part for key, value in options.items() for part in (f"--{key}", str(value))]
    given += ["--data.name", "folder", "--data.root", str(root), "--output", str(tmp_path / "run")]
    given += ["--student", "resnet8"]
    assert train.main(given) == 2
    refused = capsys.readouterr().err
    assert refused.count("\n") == 1 and "data.image_size must be given" in refused

    assert train.main([*given, "--data.image_size", "8"]) == 0, capsys.readouterr().err
    result = json.loads((tmp_path / "run" / "seed0" / "student" / "result.json").read_text())
    assert np.isfinite(result["last"]["top1"]) and result["identity"]["data"]["num_train"] == 12


def test_one_class_is_named(tmp_path, capsys):
    root = make(tmp_path, classes=("blue",))
    assert refusal(root) == f"data.root must have two classes or more, got only blue in {root / 'train'}"
    assert capsys.readouterr().out == ""


def test_classes_that_differ_in_capitals_are_named(tmp_path):
    make(tmp_path)
    (tmp_path / "val" / "red").rename(tmp_path / "val" / "Red")
    train, val = tmp_path / "train", tmp_path / "val"
    assert refusal(tmp_path).endswith(f"only {train} has red; {val} has Red for red")


@pytest.mark.parametrize("name", ["valid", "Validation", "Val", "TEST", "testing"])
def test_a_folder_that_is_called_otherwise_is_named(name, tmp_path):
    make(tmp_path)
    (tmp_path / "val").rename(tmp_path / name)
    assert refusal(tmp_path).endswith(f"no folder val or test in {tmp_path}; rename its folder {name} to val or test")


@pytest.mark.parametrize("test", ["val", "valid"])
@pytest.mark.parametrize("val_size", [0, 3])
def test_a_train_folder_that_is_called_otherwise_is_named(test, val_size, tmp_path):
    """Even where test images are to be held out: the splits themselves would be the classes."""
    make(tmp_path, test=test)
    (tmp_path / "train").rename(tmp_path / "training")
    message = refusal(tmp_path, val_size=val_size)
    assert message.endswith(f"no folder train in {tmp_path}; rename its folder training to train")


def test_a_class_may_be_called_like_a_split(tmp_path):
    for name in ("blue", "training"):
        for i in range(COUNT):
            pictures.write(tmp_path / name / f"{i}.png", pictures.draw("blue", (10 + i, 12)))
    source = load_from(tmp_path, val_size=2)
    assert source.num_classes == 2
