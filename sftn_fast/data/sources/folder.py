"""Any folder of images: ``ROOT/train/CLASS/IMAGE.jpg`` and ``ROOT/val/CLASS/IMAGE.jpg``, or one folder to split."""

from __future__ import annotations

from pathlib import Path

from torch import tensor

from sftn_fast.config import ConfigError, DataConfig, check
from sftn_fast.data.class_counts import report_class_counts
from sftn_fast.data.files import root_folder
from sftn_fast.data.folders import LabelledFiles, class_names, image_files, labelled
from sftn_fast.data.ignored_files import IgnoredFiles, listing
from sftn_fast.data.image_files import ImageFiles, register_files
from sftn_fast.data.notices import print_once
from sftn_fast.data.skip_list import SkipList
from sftn_fast.data.splits import train_val_indices
from sftn_fast.utils.similar_names import folded, nearest
from sftn_fast.utils.text import escape

OTHER_NAMES = {
    "train": ("train", "training", "trn"),
    "val": ("val", "valid", "validation", "dev", "eval"),
    "test": ("test", "testing", "tst"),
}
"""Names of a split's folder elsewhere, in lower case."""
PART = 5  # an error message proposes to test on one in so many images


@register_files("folder")
def find_folder(config: DataConfig) -> ImageFiles:
    """Find the images of any folder; classes are named by their folders, in the order ``data.class_order``.

    All images are resized to ``data.image_size``. The run is tested on ``val``, or on ``test`` if there is no ``val``;
    it must have the classes of ``train``. If neither exists, or if ROOT has the class folders itself, the run is tested
    on the images that ``data.val_size`` holds out. Files in ``ROOT/skip.txt`` are skipped. Images are normalised with
    ImageNet's mean and standard deviation; in memory they are cropped after padding by an eighth of the side, as CIFAR
    is.
    """
    size = config.image_size
    check(size is not None, "data.image_size", size, "given for data.name=folder, whose images may have any size")
    assert size is not None  # as checked
    return files_of("folder", config, size)


def files_of(name: str, config: DataConfig, size: int) -> ImageFiles:
    """Find the files of a data set with folders ``train/CLASS`` and ``val/CLASS`` or ``test/CLASS``."""
    root = root_folder(config)
    ignored, skipped = IgnoredFiles(), SkipList(root)
    train_folder, test_folder = _layout(name, root, config.val_size)
    classes = class_names(train_folder, ignored, order=config.class_order)
    if len(classes) < 2:
        raise ConfigError(f"data.root must have two classes or more, got only {listing(classes)} in {train_folder}")
    if test_folder is not None:
        _check_same_classes(
            train_folder, classes, test_folder, class_names(test_folder, ignored, order=config.class_order)
        )
    train = labelled(train_folder, classes, skipped, ignored)
    if test_folder is not None:
        test, held_out = labelled(test_folder, classes, skipped, ignored), 0
    else:
        train, test = _hold_out(train, config.val_size)
        held_out = config.val_size
    skipped.report()
    ignored.report(root)
    if held_out:
        print_once(f"no folder val or test in {root}: testing on {held_out} training images, held out class by class")
    report_class_counts(name, root, classes, train.labels, test.labels)
    return ImageFiles(name, root, train, test, classes, size, held_out)


def _hold_out(files: LabelledFiles, size: int) -> tuple[LabelledFiles, LabelledFiles]:
    """Split ``files`` into those to train on and ``size`` of them to test on.

    The test images are those that a run with a test folder would validate on. Labels are not renumbered.
    """
    kept, held = train_val_indices(tensor(files.labels), None, size)
    chosen = (
        ([files.paths[i] for i in part], [files.labels[i] for i in part]) for part in (kept.tolist(), held.tolist())
    )
    train, test = (LabelledFiles(*part) for part in chosen)
    return train, test


def _layout(name: str, root: Path, val_size: int) -> tuple[Path, Path | None]:
    """Return the folders to train and to test on; None for the latter if it is ``data.val_size`` training images."""
    train = root / "train"
    test = next((root / folder for folder in ("val", "test") if (root / folder).is_dir()), None)
    if train.is_dir() and (test is not None or val_size):
        return train, test
    missing = "val or test" if train.is_dir() else "train"
    start = f"data.name={name}: no folder {missing} in {root}"
    splits = ("val", "test") if train.is_dir() else ("train",)
    # Without train, a folder may also be that of a class.
    has_splits = train.is_dir() or test is not None or _alike(root, ("val", "test"))
    if has_splits and (alike := _alike(root, splits)):
        raise ConfigError(f"{start}; rename its folder {escape(alike)} to {missing}")
    needed = "data.root must contain train/CLASS/IMAGE.jpg and val/CLASS/IMAGE.jpg"
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
    held = "" if folder is train else f", which has the class folders {listing(classes)} itself"
    part = max(len(classes), count // PART)
    raise ConfigError(
        f"{start}{held}; {needed}, or set images apart for the test: --data.val_size {part} of the {count:,}"
    )


def _alike(root: Path, splits: tuple[str, ...]) -> str | None:
    """Return a folder in ``root`` whose name others give to one of ``splits``, or None."""
    names = {name for split in splits for name in OTHER_NAMES[split]}
    folders = sorted(path.name for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
    return next((folder for folder in folders if folder.lower() in names), None)


def _check_same_classes(train: Path, classes: list[str], test: Path, test_classes: list[str]) -> None:
    for split, own, other, others in ((train, classes, test, test_classes), (test, test_classes, train, classes)):
        names = [name for name in own if name not in others]
        if names:
            meant = {near: name for name in names for near in nearest(name, others) if folded(near) == folded(name)}
            alike = [f"{escape(near)} for {escape(name)}" for near, name in meant.items()]
            hint = f"; {other} has {listing(alike)}" if alike else ""
            raise ConfigError(
                f"{split} and {other} must have the same classes; only {split} has {listing(names)}{hint}"
            )
