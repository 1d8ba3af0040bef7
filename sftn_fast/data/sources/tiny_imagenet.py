"""Tiny ImageNet, as ``tiny-imagenet-200.zip`` unpacks."""

from __future__ import annotations

from pathlib import Path

from sftn_fast.config import ConfigError, DataConfig
from sftn_fast.data.files import missing, root_folder
from sftn_fast.data.folders import LabelledFiles, class_names, image_files, labelled, read_skip_list
from sftn_fast.data.image_files import ImageFiles, register_files

SIZE = 64
ANNOTATIONS = "val_annotations.txt"


@register_files("tiny_imagenet")
def find_tiny_imagenet(config: DataConfig) -> ImageFiles:
    """100,000 + 10,000 colour images of 200 classes, 64 x 64 (Le and Yang, Stanford CS 231N, 2015).

    Trained on ``train/WNID/images``, tested on ``val``, because the labels of ``test`` were never published. A class's
    label is its place among the sorted WordNet ids. Normalised by ImageNet's mean and deviation.
    """
    folder = _folder(root_folder(config))
    classes = class_names(folder / "train")
    skipped = read_skip_list(folder)
    train, test = labelled(folder / "train", classes, skipped), _validation(folder / "val", classes, skipped)
    return ImageFiles("tiny_imagenet", folder, train, test, num_classes=len(classes), size=config.image_size or SIZE)


def _folder(root: Path) -> Path:
    folders = [root / "tiny-imagenet-200", root]
    for folder in folders:
        if (folder / "train").is_dir() and (folder / "val").is_dir():
            return folder
    raise missing("tiny_imagenet", folders, "unpack tiny-imagenet-200.zip there, which is not fetched from here")


def _validation(val: Path, classes: list[str], skipped: set[Path]) -> LabelledFiles:
    """The files that ``val_annotations.txt`` lists: name, class and a box on each line, parted by tabs."""
    annotations = val / ANNOTATIONS
    try:
        lines = annotations.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{annotations} can't be read ({error}); where val was sorted into a folder for each class, use "
            f"data.name=folder with data.image_size={SIZE}"
        ) from error
    present = {path.name: path for path in image_files(val / "images")}
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
        if present[name] not in skipped:
            found.paths.append(present[name])
            found.labels.append(label)
    if not found.paths:
        raise ConfigError(f"{annotations} lists no images")
    return found
