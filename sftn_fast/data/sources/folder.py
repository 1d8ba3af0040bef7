"""Any folder of images: ``ROOT/train/CLASS/IMAGE.jpg`` and ``ROOT/val/CLASS/IMAGE.jpg``."""

from __future__ import annotations

from pathlib import Path

from sftn_fast.config import ConfigError, DataConfig, check
from sftn_fast.data.files import root_folder
from sftn_fast.data.folders import class_names, labelled, listing, read_skip_list
from sftn_fast.data.image_files import ImageFiles, register_files


@register_files("folder")
def find_folder(config: DataConfig) -> ImageFiles:
    """Images of classes that are named by their folders, in the names' order, all resized to ``data.image_size``.

    ``val`` is what a run is tested on, ``test`` where there is no ``val``; both must have the classes of ``train``.
    Files that ``ROOT/skip.txt`` lists are left out. Normalised by ImageNet's mean and deviation; in memory cropped
    after padding by an eighth of the side, as CIFAR is.
    """
    size = config.image_size
    check(size is not None, "data.image_size", size, "given for data.name=folder, whose images may be of any size")
    assert size is not None  # as checked
    return files_of("folder", root_folder(config), size)


def files_of(name: str, root: Path, size: int) -> ImageFiles:
    """The files of a data set whose folders are ``train/CLASS`` and ``val/CLASS`` or ``test/CLASS``."""
    train, test = _split(name, root, "train"), _split(name, root, "val", "test")
    classes = class_names(train)
    _check_same_classes(train, classes, test, class_names(test))
    skipped = read_skip_list(root)
    return ImageFiles(
        name=name,
        root=root,
        train=labelled(train, classes, skipped),
        test=labelled(test, classes, skipped),
        num_classes=len(classes),
        size=size,
    )


def _split(name: str, root: Path, *folders: str) -> Path:
    for folder in folders:
        if (root / folder).is_dir():
            return root / folder
    raise ConfigError(
        f"data.name={name}: no folder {' or '.join(folders)} in {root}; data.root must hold train/CLASS/IMAGE.jpg and "
        "val/CLASS/IMAGE.jpg"
    )


def _check_same_classes(train: Path, classes: list[str], test: Path, test_classes: list[str]) -> None:
    for split, other, names in (
        (train, test, [name for name in classes if name not in test_classes]),
        (test, train, [name for name in test_classes if name not in classes]),
    ):
        if names:
            raise ConfigError(f"{split} and {other} must have the same classes; only {split} has {listing(names)}")
