"""Loaders built from a configuration: images on the device, or files that are decoded on demand."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, tensor

from sftn_fast.config import DataConfig, check
from sftn_fast.data.auto_augment import require_operators
from sftn_fast.data.crops import RESIZED
from sftn_fast.data.decoder_choice import build_decoder
from sftn_fast.data.file_contents import digest_of_files, digest_of_sizes
from sftn_fast.data.file_loaders import Decoder, FileEvalLoader, FileSplit, FileTrainLoader, ImageFormat
from sftn_fast.data.image_files import ImageFiles, find, statistics
from sftn_fast.data.loaders import DeviceImages, EvalLoader, TrainLoader
from sftn_fast.data.mixing import MixedLoader, Mixing
from sftn_fast.data.notices import print_once
from sftn_fast.data.preprocessing import Preprocessing
from sftn_fast.data.resources import require_memory
from sftn_fast.data.source import Images, Source, load
from sftn_fast.data.splits import train_val_indices
from sftn_fast.data.views import view_of

STRONG_VIEWS = "a method that sees strong views of the images"
"""What asks for them, in messages."""


@dataclass(frozen=True)
class ImageData:
    """A data set ready for training: its loaders, and the sizes that a network needs."""

    name: str
    num_classes: int
    in_channels: int
    image_size: int  # side in pixels
    num_train: int  # images to train on, without those held out
    train: TrainLoader | FileTrainLoader
    val: EvalLoader | FileEvalLoader | None
    test: EvalLoader | FileEvalLoader
    content: str  # digest of the splits: of the pixels, or of the files' names
    test_content: str  # digest of the test images whatever their preprocessing: of pixels, or of files' names and sizes
    files: str | None = None  # digest of the files' contents, if they are decoded on demand
    white: float | None = None  # data.white, if files are decoded on demand
    class_names: tuple[str, ...] = ()  # in the order of their labels; empty if unknown
    preprocessing: Preprocessing | None = None  # from an image file to the input of a network
    of_students: ImageData | None = None  # with data.student_size: the same with a part of the training images
    grey: bool = False  # data.grey
    mixing: Mixing | None = None  # of the training images with each other, if they are mixed or labels are smoothed

    @property
    def train_labels(self) -> Tensor:
        """Labels of the training images [num_train] int64, by the index in a batch."""
        return self.train.labels

    def with_views(self, views: int, *, strong: bool = False) -> ImageData:
        """Return this data set with ``views`` augmentations of each image in training batches: [B, views, C, H, W].

        Args:
            views: Their number.
            strong: Make the last one a strong view, see :data:`sftn_fast.data.views.STRONG`.

        Raises:
            ConfigError: The loader gives one view of each image, or has no strong ones.
        """
        if views == 1:
            return self
        able = isinstance(self.train, TrainLoader | FileTrainLoader)
        if strong:
            check(able, "data.name", self.name, f"one whose loader gives several views per image for {STRONG_VIEWS}")
            self._require_strong_views()
        allowed = f"false for {self.name}, whose loader gives one view per image"
        check(able, "collaborate.own_views", True, allowed)
        return dataclasses.replace(self, train=self.train.with_views(views, strong=strong))

    def _require_strong_views(self) -> None:
        require_operators(STRONG_VIEWS, self.in_channels)
        if isinstance(self.train, FileTrainLoader):
            decoder = self.train.decoder.name
            check(decoder != "dali", "data.loader", decoder, f"torchvision or memory for {STRONG_VIEWS}")

    def of_teachers(self) -> ImageData:
        """Return this data set as teachers learn from it: not mixed if that is for students alone."""
        for_students = self.mixing is not None and self.mixing.config.mixed == "students"
        return dataclasses.replace(self, mixing=None) if for_students else self

    def mixed(self) -> ImageData | MixedData:
        """Return the splits as a training sees them: batches of the training split are mixed, if so configured."""
        if self.mixing is None:
            return self
        return MixedData(self.num_train, MixedLoader(self.train, self.mixing), self.val, self.test)

    def fingerprint(self) -> dict[str, str | int | float]:
        """Return the properties of the data that must not change when a run is resumed."""
        return {
            "data": self.name,
            "num_train": self.num_train,
            "num_val": self.val.num_samples if self.val else 0,
            "num_test": self.test.num_samples,
            "image_size": self.image_size,
            **self.train.augmentation(),
            **(self.mixing.settings() if self.mixing else {}),
            "content": self.content,
            **({"files": self.files} if self.files else {}),
            **({} if self.white is None else {"white": self.white}),
            **({"grey": True} if self.grey else {}),
        }


@dataclass(frozen=True)
class MixedData:
    """The splits of a data set whose training batches are mixed."""

    num_train: int
    train: MixedLoader
    val: EvalLoader | FileEvalLoader | None
    test: EvalLoader | FileEvalLoader


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
    """Load the data set that ``config`` names onto ``device``, or prepare to decode its files on demand.

    Args:
        config: Data set, splits and augmentation.
        seed: Seed of the order and augmentation of training batches; the splits do not depend on it.
        batch_size: Training images per step, over all ranks.
        device: Where the images are kept and augmented.
        rank, world_size: The share of each batch that this process gets.
        channels_last: Memory format of images that are decoded on demand: NHWC if true.

    Raises:
        ConfigError: Files are missing or corrupt, a package is missing, or sizes do not fit the data set.
    """
    device, share = torch.device(device), {"rank": rank, "world_size": world_size}
    step = {"seed": seed, "batch_size": batch_size, **share}
    select: Callable[[DataConfig], ImageData]
    if config.streams:
        files = find(config)
        image_format = ImageFormat(files.size, *statistics(grey=config.grey), device, channels_last, config.white)
        decoder = build_decoder(config, image_format, files.root)
        select = partial(_from_files, files, image_format, decoder, step=step, share=share)
    else:
        select = partial(_in_memory, load(config), device, step=step, share=share)
    whole, size = select(config), config.student_size
    if size is None:
        return whole
    check(size <= whole.num_train, "data.student_size", size, f"at most {whole.num_train}, the training images")
    # Smaller selections are contained in larger ones.
    students = select(dataclasses.replace(config, train_size=size, student_size=None))
    return dataclasses.replace(whole, of_students=dataclasses.replace(students, val=whole.val, test=whole.test))


def _in_memory(
    source: Source, device: torch.device, config: DataConfig, *, step: dict[str, int], share: dict[str, int]
) -> ImageData:
    """Return the selection of ``source`` that ``config`` asks for, on ``device``."""
    size = config.image_size or source.train.pixels.shape[-1]
    train_index, val_index = _choose(config, source.train.labels, source.held_out, step["batch_size"])
    require_memory(len(train_index) + len(val_index) + len(source.test.labels), len(source.mean), size)
    splits = [
        _resize(images, size)
        for images in (source.train.select(train_index), source.train.select(val_index), source.test)
    ]
    train, val, test = (DeviceImages.place(split, source.mean, source.std, device) for split in splits)
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
            view=view_of(config, len(source.mean)),
            **step,
        ),
        val=EvalLoader(val, **share) if len(val) else None,
        test=EvalLoader(test, **share),
        content=_digest(splits),
        test_content=_digest([source.test]),
        class_names=source.class_names,
        mixing=Mixing.of(config, train.labels, source.num_classes, size),
        preprocessing=Preprocessing(size, size, tuple(source.mean), tuple(source.std), config.white),
    )


def _from_files(
    files: ImageFiles,
    image_format: ImageFormat,
    decoder: Decoder,
    config: DataConfig,
    *,
    step: dict[str, int],
    share: dict[str, int],
) -> ImageData:
    """Return the selection of ``files`` that ``config`` asks for, decoded on demand."""
    train_index, val_index = _choose(config, tensor(files.train.labels), files.held_out, step["batch_size"])
    train, val = (FileSplit.choose(files.train, index) for index in (train_index, val_index))
    test = FileSplit.choose(files.test)
    return ImageData(
        name=files.name,
        num_classes=files.num_classes,
        in_channels=len(image_format.mean),
        image_size=files.size,
        num_train=len(train),
        train=FileTrainLoader(
            train, decoder, flip=config.flip is not False, view=view_of(config, len(image_format.mean)), **step
        ),
        val=FileEvalLoader(val, decoder, **share) if len(val) else None,
        test=FileEvalLoader(test, decoder, **share),
        content=_digest_of_names([train, val, test], files.root),
        test_content=_digest_of_names([test], files.root) + digest_of_sizes(test.paths),
        files=digest_of_files([*train.paths, *val.paths, *test.paths]),
        white=config.white,
        grey=config.grey,
        class_names=tuple(files.class_names),
        mixing=Mixing.of(config, train.labels.to(image_format.device), files.num_classes, files.size),
        preprocessing=Preprocessing(
            round(files.size * RESIZED), files.size, image_format.mean, image_format.std, config.white
        ),
    )


def _choose(config: DataConfig, labels: Tensor, held_out: int, batch_size: int) -> tuple[Tensor, Tensor]:
    """Split the training images into those to train and to validate on; warn if either part is too small."""
    train, val = train_val_indices(labels, config.train_size, config.val_size - held_out)
    if len(train) < batch_size:
        smaller = max(2, len(train) // 8)
        print_once(
            f"warning: {len(train)} training images are fewer than optim.batch_size={batch_size}, so an epoch is one "
            f"step; a batch size of {smaller} would make it {-(-len(train) // smaller)}"
        )
    classes, seen = len(labels.unique()), len(labels[val].unique())
    if len(val) and seen < classes:
        print_once(f"warning: data.val_size={config.val_size} holds out images of only {seen} of the {classes} classes")
    return train, val


def _resize(images: Images, size: int) -> Images:
    if images.pixels.shape[-1] == size or len(images.pixels) == 0:
        return images
    pixels = F.interpolate(images.pixels, size=(size, size), mode="bilinear", antialias=True)
    return Images(pixels, images.labels)


def _digest(splits: list[Images]) -> str:
    """Return the sha256 of all labels and pixels: 0.1 s for CIFAR, so there is no need to sample."""
    digest = hashlib.sha256()
    for images in splits:
        digest.update(images.labels.contiguous().numpy().data)
        digest.update(images.pixels.contiguous().numpy().data)
    return digest.hexdigest()


def _digest_of_names(splits: list[FileSplit], root: Path) -> str:
    """Return the sha256 of every file's label and path relative to ``root``, which may move between runs."""
    digest = hashlib.sha256()
    for split in splits:
        digest.update(split.labels.numpy().data)
        digest.update("\0".join(split.relative(root)).encode("utf-8", "surrogateescape"))
    return digest.hexdigest()
