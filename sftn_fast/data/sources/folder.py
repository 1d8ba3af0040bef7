"""Any folder of images: ``ROOT/train/CLASS/IMAGE.jpg`` and ``ROOT/val/CLASS/IMAGE.jpg``; or one of them held out."""

from __future__ import annotations

from pathlib import Path

from torch import tensor

from sftn_fast.config import ConfigError, DataConfig, check
from sftn_fast.data.classes import say_classes
from sftn_fast.data.files import root_folder
from sftn_fast.data.folders import LabelledFiles, class_names, image_files, labelled
from sftn_fast.data.image_files import ImageFiles, register_files
from sftn_fast.data.left_out import LeftOut, listing
from sftn_fast.data.notices import say
from sftn_fast.data.skip_list import SkipList
from sftn_fast.data.splits import train_val_indices

PART = 5  # of the images, one in so many is what a message proposes to test on


@register_files("folder")
def find_folder(config: DataConfig) -> ImageFiles:
    """Images of classes that are named by their folders, in the names' order, all resized to ``data.image_size``.

    ``val`` is what a run is tested on, ``test`` where there is no ``val``; both must have the classes of ``train``.
    Where there is neither, or where ROOT holds the class folders themselves, the images that ``data.val_size`` holds
    out are. Files that ``ROOT/skip.txt`` lists are left out. Normalised by ImageNet's mean and deviation; in memory
    cropped after padding by an eighth of the side, as CIFAR is.
    """
    size = config.image_size
    check(size is not None, "data.image_size", size, "given for data.name=folder, whose images may be of any size")
    assert size is not None  # as checked
    return files_of("folder", config, size)


def files_of(name: str, config: DataConfig, size: int) -> ImageFiles:
    """The files of a data set whose folders are ``train/CLASS`` and ``val/CLASS`` or ``test/CLASS``."""
    root = root_folder(config)
    left_out, skipped = LeftOut(), SkipList(root)
    train_folder, test_folder = _layout(name, root, config.val_size)
    classes = class_names(train_folder, left_out)
    if test_folder is not None:
        _check_same_classes(train_folder, classes, test_folder, class_names(test_folder, left_out))
    train = labelled(train_folder, classes, skipped, left_out)
    if test_folder is not None:
        test, held_out = labelled(test_folder, classes, skipped, left_out), 0
    else:
        train, test = _hold_out(train, config.val_size)
        held_out = config.val_size
    skipped.report()
    left_out.report(root)
    if held_out:
        say(f"no folder val or test in {root}: {held_out} images, class by class, are held out for the test")
    say_classes(name, root, classes, train.labels, test.labels)
    return ImageFiles(name, root, train, test, classes, size, held_out)


def _hold_out(files: LabelledFiles, size: int) -> tuple[LabelledFiles, LabelledFiles]:
    """What is left of ``files``, and ``size`` of them to test on: those that would be validated on, were there a test.

    Labels stay those of all classes.
    """
    kept, held = train_val_indices(tensor(files.labels), None, size)
    chosen = (
        ([files.paths[i] for i in part], [files.labels[i] for i in part]) for part in (kept.tolist(), held.tolist())
    )
    train, test = (LabelledFiles(*part) for part in chosen)
    return train, test


def _layout(name: str, root: Path, val_size: int) -> tuple[Path, Path | None]:
    """The folders of the classes to train and to test on; None where ``data.val_size`` images are for the latter."""
    train = root / "train"
    test = next((root / folder for folder in ("val", "test") if (root / folder).is_dir()), None)
    if train.is_dir() and (test is not None or val_size):
        return train, test
    start = f"data.name={name}: no folder {'val or test' if train.is_dir() else 'train'} in {root}"
    needed = "data.root must hold train/CLASS/IMAGE.jpg and val/CLASS/IMAGE.jpg"
    folder = train if train.is_dir() else root
    if test is not None or not folder.is_dir():
        raise ConfigError(f"{start}; {needed}")
    count = len(image_files(folder))
    try:
        classes = class_names(folder)
    except ConfigError:
        classes = []
    if len(classes) < 2 or count < PART:
        raise ConfigError(f"{start}; {needed}")
    if val_size:
        return folder, None
    held = "" if folder is train else f", which holds the class folders {listing(classes)} themselves"
    part = max(len(classes), count // PART)
    raise ConfigError(
        f"{start}{held}; {needed}, or hold images out for the test: --data.val_size {part} of the {count:,}"
    )


def _check_same_classes(train: Path, classes: list[str], test: Path, test_classes: list[str]) -> None:
    for split, other, names in (
        (train, test, [name for name in classes if name not in test_classes]),
        (test, train, [name for name in test_classes if name not in classes]),
    ):
        if names:
            raise ConfigError(f"{split} and {other} must have the same classes; only {split} has {listing(names)}")
