"""Tiny ImageNet in its published layout."""

from __future__ import annotations

import pytest

pytest.importorskip("PIL.Image")
import pictures

from sftn_fast.config import ConfigError, DataConfig
from sftn_fast.data.source import load

WNIDS = {"n01443537": "red", "n01629819": "green", "n02124075": "blue"}
COUNT = 2


def make(folder):
    for wnid, colour in WNIDS.items():
        for i in range(COUNT):
            pictures.write(folder / "train" / wnid / "images" / f"{wnid}_{i}.JPEG", pictures.draw(colour, (64, 64)))
        (folder / "train" / wnid / f"{wnid}_boxes.txt").write_text(f"{wnid}_0.JPEG\t0\t10\t63\t58\n")
    pictures.write(folder / "test" / "images" / "test_0.JPEG")
    (folder / "wnids.txt").write_text("\n".join(reversed(WNIDS)))
    annotations = []
    for i, (wnid, colour) in enumerate(reversed(WNIDS.items())):
        pictures.write(folder / "val" / "images" / f"val_{i}.JPEG", pictures.draw(colour, (64, 64)))
        annotations.append(f"val_{i}.JPEG\t{wnid}\t0\t32\t44\t62\n")
    (folder / "val" / "val_annotations.txt").write_text("".join(annotations))
    return folder


def load_from(root, **options):
    return load(DataConfig("tiny_imagenet", root=str(root), **options))


def brightest(images):
    """Return the brightest channel of each image."""
    return images.pixels.float().mean((2, 3)).argmax(1).tolist()


@pytest.mark.parametrize("below", ["", "tiny-imagenet-200"])
def test_the_published_layout(below, tmp_path):
    make(tmp_path / below)
    source = load_from(tmp_path)
    assert source.train.pixels.shape == (3 * COUNT, 3, 64, 64)
    assert source.train.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert brightest(source.train) == [0, 0, 1, 1, 2, 2]
    assert (source.test.labels.tolist(), brightest(source.test)) == ([2, 1, 0], [2, 1, 0])
    assert (source.num_classes, source.crop_padding, source.flip) == (3, 8, True)


def test_decoded_in_the_size_that_is_asked_for(tmp_path):
    source = load_from(make(tmp_path), image_size=32)
    assert (source.test.pixels.shape, source.crop_padding) == ((3, 3, 32, 32), 4)


@pytest.mark.parametrize("path", ["train/n01443537/images/n01443537_0.JPEG", "val/images/val_1.JPEG"])
def test_a_damaged_file_is_named_and_can_be_left_out(path, tmp_path):
    make(tmp_path)
    (tmp_path / path).write_bytes(b"")
    with pytest.raises(ConfigError, match=f"{path} can't be decoded"):
        load_from(tmp_path)
    (tmp_path / "skip.txt").write_text(f"{path}\n")
    source = load_from(tmp_path)
    assert len(source.train.labels) + len(source.test.labels) == 3 * COUNT + 3 - 1


def test_a_missing_validation_image_is_named(tmp_path):
    (make(tmp_path) / "val" / "images" / "val_0.JPEG").unlink()
    with pytest.raises(ConfigError, match=r"line 1: expected the name of an image in val/images, .* got 'val_0.JPEG"):
        load_from(tmp_path)


@pytest.mark.parametrize(
    "line",
    [
        "val_9.JPEG\tn00000000\t0\t0\t1\t1",
        "val_9.JPEG",
        "val_9.JPEG n01443537",
        "../val_9.JPEG\tn01443537",
        "\tn01443537",
        "",
    ],
)
def test_wrong_annotations_are_refused(line, tmp_path):
    with (make(tmp_path) / "val" / "val_annotations.txt").open("a") as file:
        file.write(f"{line}\n")
    with pytest.raises(ConfigError, match=r"val_annotations.txt, line 4: expected .* got '"):
        load_from(tmp_path)


def test_no_annotations(tmp_path):
    make(tmp_path)
    (tmp_path / "val" / "val_annotations.txt").write_text("")
    with pytest.raises(ConfigError, match=r"val_annotations.txt lists no images"):
        load_from(tmp_path)
    (tmp_path / "val" / "val_annotations.txt").unlink()
    with pytest.raises(ConfigError, match=r"data.name=folder with data.image_size=64"):
        load_from(tmp_path)


def test_missing_files(tmp_path):
    with pytest.raises(ConfigError) as error:
        load_from(tmp_path)
    for part in (str(tmp_path / "tiny-imagenet-200"), "tiny-imagenet-200.zip", "data.root"):
        assert part in str(error.value)
