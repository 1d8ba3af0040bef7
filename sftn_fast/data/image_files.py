"""Data sets that are folders of image files: the registry of those that find them, and both ways to use them.

A finder says which files there are; whether they are then decoded once into memory, as a
:class:`~sftn_fast.data.source.Source`, or as they are needed, is not its concern.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import tensor

from sftn_fast.config import DataConfig
from sftn_fast.data.decode import read_images
from sftn_fast.data.folders import LabelledFiles
from sftn_fast.data.source import Images, Source, register

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class ImageFiles:
    """The official splits of a data set, as files, and the size at which its images are used."""

    name: str
    root: Path  # where skip.txt lies
    train: LabelledFiles
    test: LabelledFiles
    class_names: list[str]  # in the order of their labels
    size: int  # pixels a side
    held_out: int = 0
    """Of the images that ``data.val_size`` holds out, how many are in ``test`` already."""

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)


Finder = Callable[[DataConfig], ImageFiles]
_finders: dict[str, Finder] = {}


def register_files(name: str) -> Callable[[Finder], Finder]:
    """Make the decorated function find the files of the data set ``name``, which can then be loaded too."""

    def add(finder: Finder) -> Finder:
        _finders[name] = finder
        register(name)(lambda config: in_memory(finder(config), config.white))
        return finder

    return add


def find(config: DataConfig) -> ImageFiles:
    """The files of the data set that ``config`` names, one of ``config.FILE_DATASETS``.

    Raises:
        ConfigError: Folders are missing, empty or unlike each other.
    """
    from sftn_fast.data import sources  # noqa: F401  # registers them

    return _finders[config.name](config)


def in_memory(files: ImageFiles, white: float | None = None) -> Source:
    """All images decoded, the shorter side resized, the central square kept; normalised as ImageNet."""
    train, test = (
        Images(read_images(split.paths, files.size, root=files.root, white=white), tensor(split.labels))
        for split in (files.train, files.test)
    )
    return Source(
        name=files.name,
        num_classes=files.num_classes,
        train=train,
        test=test,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        crop_padding=files.size // 8,
        flip=True,
        class_names=tuple(files.class_names),
        held_out=files.held_out,
    )
