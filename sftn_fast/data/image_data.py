"""From a configuration to loaders: choose the splits, resize, move to the device."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sftn_fast.config import DataConfig
from sftn_fast.data.loaders import DeviceImages, EvalLoader, TrainLoader
from sftn_fast.data.source import Images, load
from sftn_fast.data.splits import train_val_indices


@dataclass(frozen=True)
class ImageData:
    """A data set ready for training: its loaders, and what a network has to know of it."""

    name: str
    num_classes: int
    in_channels: int
    image_size: int  # pixels a side
    num_train: int  # images trained on, without those held out
    train: TrainLoader
    val: EvalLoader | None
    test: EvalLoader
    content: str  # digest of the splits

    @property
    def train_labels(self) -> Tensor:
        """Classes of the training images [num_train] int64, by the index that a batch gives."""
        return self.train.data.labels

    def with_views(self, views: int) -> ImageData:
        """The same, but that training batches hold ``views`` augmentations of each image [B, views, C, H, W]."""
        return self if views == 1 else dataclasses.replace(self, train=self.train.with_views(views))

    def fingerprint(self) -> dict[str, str | int]:
        """What must agree for a resumed run to be the same run, as far as the data are concerned."""
        return {
            "data": self.name,
            "num_train": self.num_train,
            "num_val": self.val.num_samples if self.val else 0,
            "num_test": self.test.num_samples,
            "image_size": self.image_size,
            "crop_padding": self.train.crop_padding,
            "flip": int(self.train.flip),
            "content": self.content,
        }


def build(
    config: DataConfig,
    *,
    seed: int,
    batch_size: int,
    device: torch.device | str,
    rank: int = 0,
    world_size: int = 1,
) -> ImageData:
    """Load the data set that ``config`` names and put it on ``device``.

    Args:
        config: Data set, splits and augmentation.
        seed: Decides the order and the augmentation of training batches; the splits do not depend on it.
        batch_size: Training images a step, over all ranks together.
        device: Where the images are kept and augmented.
        rank, world_size: Which share of each batch this process gets.

    Raises:
        ConfigError: Files are missing or corrupt, a package is missing, or sizes do not fit the data set.
    """
    source = load(config)
    size = config.image_size or source.train.pixels.shape[-1]
    train_index, val_index = train_val_indices(source.train.labels, config.train_size, config.val_size)
    splits = [
        _resize(images, size)
        for images in (source.train.select(train_index), source.train.select(val_index), source.test)
    ]
    train, val, test = (DeviceImages.place(split, source.mean, source.std, torch.device(device)) for split in splits)
    return ImageData(
        name=source.name,
        num_classes=source.num_classes,
        in_channels=len(source.mean),
        image_size=size,
        num_train=len(train),
        train=TrainLoader(
            train,
            seed=seed,
            batch_size=batch_size,
            crop_padding=source.crop_padding if config.crop_padding is None else config.crop_padding,
            flip=source.flip if config.flip is None else config.flip,
            rank=rank,
            world_size=world_size,
        ),
        val=EvalLoader(val, rank=rank, world_size=world_size) if len(val) else None,
        test=EvalLoader(test, rank=rank, world_size=world_size),
        content=_digest(splits),
    )


def _resize(images: Images, size: int) -> Images:
    if images.pixels.shape[-1] == size or len(images.pixels) == 0:
        return images
    pixels = F.interpolate(images.pixels, size=(size, size), mode="bilinear", antialias=True)
    return Images(pixels, images.labels)


def _digest(splits: list[Images]) -> str:
    """sha256 over every label and pixel: 0.1 s for CIFAR, so there is no need to sample."""
    digest = hashlib.sha256()
    for images in splits:
        digest.update(images.labels.contiguous().numpy().data)
        digest.update(images.pixels.contiguous().numpy().data)
    return digest.hexdigest()
