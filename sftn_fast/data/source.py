"""The contents of a data set, and the registry of the data sets that ``data.name`` can name.

To add a data set, write a function that returns a :class:`Source`, decorate it with :func:`register`, import its module
in ``sources/__init__.py``, and add its name to ``config.DATASETS``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType

import torch
from torch import Tensor

from sftn_fast.config import ConfigError, DataConfig


@dataclass(frozen=True)
class Images:
    """Labelled images in host memory."""

    pixels: Tensor  # [N, C, H, W] uint8, H = W
    labels: Tensor  # [N] int64

    def select(self, index: Tensor) -> Images:
        """Return the images at ``index`` [M], in that order."""
        return Images(self.pixels[index], self.labels[index])


@dataclass(frozen=True)
class Source:
    """A data set as published: the official splits, and its usual augmentation.

    Raises:
        ConfigError: A label is outside ``0 .. num_classes - 1``, the numbers of images and labels differ, or a tensor
            has the wrong shape or dtype. Otherwise a wrong label would be an out-of-bounds access in a kernel.
    """

    name: str
    num_classes: int
    train: Images
    test: Images
    mean: tuple[float, ...]  # per channel, for pixel values from 0 to 1
    std: tuple[float, ...]
    crop_padding: int
    flip: bool
    class_names: tuple[str, ...] = ()  # in the order of their labels; empty if unknown
    held_out: int = 0
    """Number of the images held out by ``data.val_size`` that are already in ``test``."""

    def __post_init__(self) -> None:
        if self.class_names and len(self.class_names) != self.num_classes:
            raise ValueError(f"{self.name}: {len(self.class_names)} names for {self.num_classes} classes")
        for split, images in (("training", self.train), ("test", self.test)):
            _check_images(images, self.num_classes, len(self.mean), f"{self.name}: the {split} set")


def _check_images(images: Images, num_classes: int, channels: int, what: str) -> None:
    pixels, labels = images.pixels, images.labels
    square = pixels.ndim == 4 and pixels.shape[1] == channels and pixels.shape[2] == pixels.shape[3]
    if not square or pixels.dtype != torch.uint8:
        raise ConfigError(
            f"{what} must hold square uint8 images of {channels} channels, got {pixels.dtype} {list(pixels.shape)}"
        )
    if labels.dtype != torch.int64 or labels.shape != pixels.shape[:1]:
        raise ConfigError(
            f"{what} must have an int64 label for each of its {len(pixels)} images, "
            f"got {labels.dtype} {list(labels.shape)}"
        )
    wrong = ((labels < 0) | (labels >= num_classes)).nonzero()
    if len(wrong):
        first = int(wrong[0])
        raise ConfigError(
            f"{what} has {len(wrong)} labels outside 0..{num_classes - 1}, the first at image {first}: "
            f"{int(labels[first])}"
        )


Loader = Callable[[DataConfig], Source]
_loaders: dict[str, Loader] = {}


def register(name: str) -> Callable[[Loader], Loader]:
    """Register the decorated function as the loader of the data set ``name``."""

    def add(loader: Loader) -> Loader:
        if name in _loaders:
            raise ValueError(f"data set {name!r} is registered twice")
        _loaders[name] = loader
        return loader

    return add


def names() -> tuple[str, ...]:
    """Return the names of the registered data sets."""
    import_module(".sources", __package__)
    return tuple(sorted(_loaders))


def load(config: DataConfig) -> Source:
    """Load the data set that ``config`` names.

    Raises:
        ConfigError: The name is unknown, files are missing or corrupt, or a package that reads them is missing.
    """
    if config.name not in names():
        raise ConfigError(f"data.name must be one of {', '.join(names())}, got {config.name!r}")
    return _loaders[config.name](config)


def require(module: str, package: str, setting: str) -> ModuleType:
    """Import an optional module.

    Args:
        module: Its name.
        package: The name of its package in pip.
        setting: The setting that needs it, for example ``data.name=cifar10``.

    Raises:
        ConfigError: It is missing or broken.
    """
    try:
        return import_module(module)
    # Not only ImportError: a torchvision that does not match torch raises RuntimeError.
    except Exception as error:
        raise ConfigError(
            f"{setting} needs {module}, which can't be imported ({error}); pip install {package}"
        ) from error
