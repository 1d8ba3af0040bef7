"""From a configuration to loaders: choose the splits, resize, move to the device; or who decodes what, and when."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, tensor

from sftn_fast.config import FILE_DATASETS, ConfigError, DataConfig
from sftn_fast.data.choice import build_decoder
from sftn_fast.data.file_contents import digest_of_files
from sftn_fast.data.image_files import IMAGENET_MEAN, IMAGENET_STD, find
from sftn_fast.data.loaders import DeviceImages, EvalLoader, TrainLoader
from sftn_fast.data.notices import say
from sftn_fast.data.source import Images, load
from sftn_fast.data.splits import train_val_indices
from sftn_fast.data.stream import FileEvalLoader, FileSplit, FileTrainLoader, Form


@dataclass(frozen=True)
class ImageData:
    """A data set ready for training: its loaders, and what a network has to know of it."""

    name: str
    num_classes: int
    in_channels: int
    image_size: int  # pixels a side
    num_train: int  # images trained on, without those held out
    train: TrainLoader | FileTrainLoader
    val: EvalLoader | FileEvalLoader | None
    test: EvalLoader | FileEvalLoader
    content: str  # digest of the splits: of their pixels, or of the files' names
    files: str | None = None  # digest of what the files hold, where images are decoded as they are needed
    white: float | None = None  # what files decoded as they are needed are told, where they do not say it themselves
    class_names: tuple[str, ...] = ()  # in the order of their labels; empty where they are not known

    @property
    def train_labels(self) -> Tensor:
        """Classes of the training images [num_train] int64, by the index that a batch gives."""
        return self.train.labels

    def with_views(self, views: int) -> ImageData:
        """The same, but that training batches hold ``views`` augmentations of each image [B, views, C, H, W].

        Raises:
            ConfigError: The loader can't give more than one.
        """
        if views == 1:
            return self
        if not isinstance(self.train, TrainLoader):
            allowed = f"false for {self.name}, whose loader makes one view of an image"
            raise ConfigError(f"collaborate.own_views must be {allowed}, got True")
        return dataclasses.replace(self, train=self.train.with_views(views))

    def fingerprint(self) -> dict[str, str | int | float]:
        """What must agree for a resumed run to be the same run, as far as the data are concerned."""
        return {
            "data": self.name,
            "num_train": self.num_train,
            "num_val": self.val.num_samples if self.val else 0,
            "num_test": self.test.num_samples,
            "image_size": self.image_size,
            **self.train.augmentation(),
            "content": self.content,
            **({"files": self.files} if self.files else {}),
            **({} if self.white is None else {"white": self.white}),
        }


def build(
    config: DataConfig,
    *,
    seed: int,
    batch_size: int,
    device: torch.device | str,
    rank: int = 0,
    world_size: int = 1,
    channels_last: bool = False,
) -> ImageData:
    """Load the data set that ``config`` names and put it on ``device``, or make ready to decode it for there.

    Args:
        config: Data set, splits and augmentation.
        seed: Decides the order and the augmentation of training batches; the splits do not depend on it.
        batch_size: Training images a step, over all ranks together.
        device: Where the images are kept and augmented.
        rank, world_size: Which share of each batch this process gets.
        channels_last: Whether images that are decoded as they are needed lie as NHWC.

    Raises:
        ConfigError: Files are missing or corrupt, a package is missing, or sizes do not fit the data set.
    """
    share = {"rank": rank, "world_size": world_size}
    step = {"seed": seed, "batch_size": batch_size, **share}
    if config.streams:
        return _build_stream(config, torch.device(device), channels_last, step, share)
    source = load(config)
    size = config.image_size or source.train.pixels.shape[-1]
    train_index, val_index = _choose(config, source.train.labels, source.held_out, batch_size)
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
            crop_padding=source.crop_padding if config.crop_padding is None else config.crop_padding,
            flip=source.flip if config.flip is None else config.flip,
            **step,
        ),
        val=EvalLoader(val, **share) if len(val) else None,
        test=EvalLoader(test, **share),
        content=_digest(splits),
        class_names=source.class_names,
    )


def _build_stream(
    config: DataConfig, device: torch.device, channels_last: bool, step: dict[str, int], share: dict[str, int]
) -> ImageData:
    files = find(config)
    form = Form(files.size, IMAGENET_MEAN, IMAGENET_STD, device, channels_last, config.white)
    decoder = build_decoder(config, form, files.root)
    train_index, val_index = _choose(config, tensor(files.train.labels), files.held_out, step["batch_size"])
    train, val = (FileSplit.choose(files.train, index) for index in (train_index, val_index))
    test = FileSplit.choose(files.test)
    return ImageData(
        name=files.name,
        num_classes=files.num_classes,
        in_channels=len(form.mean),
        image_size=files.size,
        num_train=len(train),
        train=FileTrainLoader(train, decoder, flip=config.flip is not False, **step),
        val=FileEvalLoader(val, decoder, **share) if len(val) else None,
        test=FileEvalLoader(test, decoder, **share),
        content=_digest_of_names([train, val, test], files.root),
        files=digest_of_files([*train.paths, *val.paths, *test.paths]),
        white=config.white,
        class_names=tuple(files.class_names),
    )


def say_notices(config: DataConfig) -> None:
    """Say of image files what :func:`build` says of them, where other processes are to build.

    Raises:
        ConfigError: Folders are missing, empty or unlike each other.
    """
    if config.name in FILE_DATASETS:
        find(config)


def _choose(config: DataConfig, labels: Tensor, held_out: int, batch_size: int) -> tuple[Tensor, Tensor]:
    """Which training images to train on and which to validate on; warns of what is too small to be of use."""
    train, val = train_val_indices(labels, config.train_size, config.val_size - held_out)
    if len(train) < batch_size:
        say(
            f"warning: {len(train)} training images are fewer than optim.batch_size={batch_size}: an epoch is one "
            f"step; a batch of {max(2, len(train) // 8)} would make it {-(-len(train) // max(2, len(train) // 8))}"
        )
    classes, seen = len(labels.unique()), len(labels[val].unique())
    if len(val) and seen < classes:
        say(f"warning: data.val_size={config.val_size} holds out images of {seen} of the {classes} classes alone")
    return train, val


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


def _digest_of_names(splits: list[FileSplit], root: Path) -> str:
    """sha256 over every file's class and name below ``root``, which may be somewhere else the next time."""
    digest = hashlib.sha256()
    for split in splits:
        digest.update(split.labels.numpy().data)
        digest.update("\0".join(split.relative(root)).encode("utf-8", "surrogateescape"))
    return digest.hexdigest()
