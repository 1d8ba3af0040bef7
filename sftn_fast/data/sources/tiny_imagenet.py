"""Tiny ImageNet, in the layout of ``tiny-imagenet-200.zip``."""

from __future__ import annotations

from pathlib import Path

from sftn_fast.config import ConfigError, DataConfig
from sftn_fast.data.class_counts import report_class_counts
from sftn_fast.data.files import missing, root_folder
from sftn_fast.data.folders import LabelledFiles, class_names, image_files, labelled
from sftn_fast.data.ignored_files import IgnoredFiles
from sftn_fast.data.image_files import ImageFiles, register_files
from sftn_fast.data.regular_files import open_regular
from sftn_fast.data.skip_list import SkipList

SIZE = 64
ANNOTATIONS = "val_annotations.txt"
MAX_BYTES = 2**26  # of the annotations


@register_files("tiny_imagenet")
def find_tiny_imagenet(config: DataConfig) -> ImageFiles:
    """Find 100,000 + 10,000 colour images of 200 classes, 64 x 64 (Le and Yang, Stanford CS 231N, 2015).

    Training images are ``train/WNID/images``. Test images are ``val``, because the labels of ``test`` were never
    published. A label is the class's index among the sorted WordNet ids. Images are normalised with ImageNet's mean and
    standard deviation.
    """
    folder = _folder(root_folder(config))
    ignored, skipped = IgnoredFiles(), SkipList(folder)
    classes = class_names(folder / "train", ignored)
    train = labelled(folder / "train", classes, skipped, ignored)
    test = _validation(folder / "val", classes, skipped, ignored)
    skipped.report()
    ignored.report(folder)
    report_class_counts("tiny_imagenet", folder, classes, train.labels, test.labels)
    return ImageFiles("tiny_imagenet", folder, train, test, classes, size=config.image_size or SIZE)


def _folder(root: Path) -> Path:
    folders = [root / "tiny-imagenet-200", root]
    for folder in folders:
        if (folder / "train").is_dir() and (folder / "val").is_dir():
            return folder
    raise missing("tiny_imagenet", folders, "download tiny-imagenet-200.zip and unpack it there")


def _validation(val: Path, classes: list[str], skipped: SkipList, ignored: IgnoredFiles) -> LabelledFiles:
    """Return the files in ``val_annotations.txt``: name, class and a box on each line, separated by tabs."""
    annotations = val / ANNOTATIONS
    try:
        with open_regular(annotations, MAX_BYTES) as file:
            lines = file.read().decode().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{annotations} can't be read ({error}); if val is sorted into one folder per class, use "
            f"data.name=folder with data.image_size={SIZE}"
        ) from error
    present = {path.name: path for path in image_files(val / "images", ignored)}
    label_of = {name: label for label, name in enumerate(classes)}
    found = LabelledFiles([], [])
    for number, line in enumerate(lines, start=1):
        name, _, rest = line.partition("\t")
        label = label_of.get(rest.split("\t")[0])
        if label is None or name not in present:
            raise ConfigError(
                f"{annotations}, line {number}: expected the name of an image in val/images, a tab and the name of a "
                f"folder in train, got {line[:80]!r}"
            )
        for path in skipped.keep([present[name]]):
            found.paths.append(path)
            found.labels.append(label)
    if not found.paths:
        raise ConfigError(f"{annotations} lists no images")
    return found
