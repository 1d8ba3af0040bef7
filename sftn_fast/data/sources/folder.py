"""Any folder of images: ``ROOT/train/CLASS/IMAGE.jpg`` and ``ROOT/val/CLASS/IMAGE.jpg``."""

from __future__ import annotations

from pathlib import Path

from torch import tensor

from sftn_fast.config import ConfigError, DataConfig, check
from sftn_fast.data.decode import read_images
from sftn_fast.data.files import root_folder
from sftn_fast.data.folders import LabelledFiles, class_names, labelled, listing, read_skip_list
from sftn_fast.data.source import Images, Source, register

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@register("folder")
def load_folder(config: DataConfig) -> Source:
    """Images of classes that are named by their folders, in the names' order, all resized to ``data.image_size``.

    The shorter side is resized, the central square kept. ``val`` is what a run is tested on, ``test`` where there is no
    ``val``; both must have the classes of ``train``. Files that ``ROOT/skip.txt`` lists are left out. Normalised by
    ImageNet's mean and deviation; cropped after padding by an eighth of the side, as CIFAR is.
    """
    size = config.image_size
    check(size is not None, "data.image_size", size, "given for data.name=folder, whose images may be of any size")
    assert size is not None  # as checked
    root = root_folder(config)
    train, test = _split(root, "train"), _split(root, "val", "test")
    classes = class_names(train)
    _check_same_classes(train, classes, test, class_names(test))
    skipped = read_skip_list(root)
    # Both found before either is decoded: what is missing is said at once.
    splits = [labelled(split, classes, skipped) for split in (train, test)]
    return source_of("folder", root, splits, len(classes), size)


def source_of(name: str, root: Path, splits: list[LabelledFiles], num_classes: int, size: int) -> Source:
    """Decode the training and the test files and normalise them as ImageNet."""
    train, test = (Images(read_images(files.paths, size, root=root), tensor(files.labels)) for files in splits)
    return Source(
        name=name,
        num_classes=num_classes,
        train=train,
        test=test,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        crop_padding=size // 8,
        flip=True,
    )


def _split(root: Path, *names: str) -> Path:
    for name in names:
        if (root / name).is_dir():
            return root / name
    raise ConfigError(
        f"data.name=folder: no folder {' or '.join(names)} in {root}; data.root must hold train/CLASS/IMAGE.jpg and "
        "val/CLASS/IMAGE.jpg"
    )


def _check_same_classes(train: Path, classes: list[str], test: Path, test_classes: list[str]) -> None:
    for split, other, names in (
        (train, test, [name for name in classes if name not in test_classes]),
        (test, train, [name for name in test_classes if name not in classes]),
    ):
        if names:
            raise ConfigError(f"{split} and {other} must have the same classes; only {split} has {listing(names)}")
