"""Data sets of image files, and the registry of the functions that find the files.

A finder only lists files. They are then decoded once into memory, as a :class:`~sftn_fast.data.source.Source`, or on
demand.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import tensor

from sftn_fast.config import DataConfig
from sftn_fast.data import grey as grey_images
from sftn_fast.data.decode import read_images
from sftn_fast.data.folders import LabelledFiles
from sftn_fast.data.source import Images, Source, register

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class ImageFiles:
    """The official splits of a data set as files, and the size to which its images are resized."""

    name: str
    root: Path  # folder of skip.txt
    train: LabelledFiles
    test: LabelledFiles
    class_names: list[str]  # in the order of their labels
    size: int  # side in pixels
    held_out: int = 0
    """Number of the images held out by ``data.val_size`` that are already in ``test``."""

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)


Finder = Callable[[DataConfig], ImageFiles]
_finders: dict[str, Finder] = {}


def register_files(name: str) -> Callable[[Finder], Finder]:
    """Register the decorated function as the finder of the data set ``name``, and a loader into memory with it."""

    def add(finder: Finder) -> Finder:
        _finders[name] = finder
        register(name)(lambda config: in_memory(finder(config), config.white, grey=config.grey))
        return finder

    return add


def find(config: DataConfig) -> ImageFiles:
    """Find the files of the data set that ``config`` names, one of ``config.FILE_DATASETS``.

    Raises:
        ConfigError: Folders are missing or empty, or the splits have different classes.
    """
    from sftn_fast.data import sources  # noqa: F401  # registers them

    return _finders[config.name](config)


def statistics(*, grey: bool) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the mean and the standard deviation by which images from files are normalised, for each channel."""
    return (grey_images.MEAN, grey_images.STD) if grey else (IMAGENET_MEAN, IMAGENET_STD)


def in_memory(files: ImageFiles, white: float | None = None, *, grey: bool = False) -> Source:
    """Decode all images to central squares of ``files.size`` pixels, normalised with ImageNet's statistics."""
    train, test = (
        Images(read_images(split.paths, files.size, root=files.root, white=white, grey=grey), tensor(split.labels))
        for split in (files.train, files.test)
    )
    mean, std = statistics(grey=grey)
    return Source(
        name=files.name,
        num_classes=files.num_classes,
        train=train,
        test=test,
        mean=mean,
        std=std,
        crop_padding=files.size // 8,
        flip=True,
        class_names=tuple(files.class_names),
        held_out=files.held_out,
    )
