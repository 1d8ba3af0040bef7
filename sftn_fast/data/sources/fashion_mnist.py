"""Fashion-MNIST, in torchvision's layout or as installed by Debian's package ``dataset-fashion-mnist``."""

from __future__ import annotations

import gzip
import hashlib
import math
import zlib
from pathlib import Path

import torch
from torch import Tensor

from sftn_fast.config import ConfigError, DataConfig
from sftn_fast.data.files import exclusive, missing, root_folder
from sftn_fast.data.regular_files import open_regular
from sftn_fast.data.source import Images, Source, register, require

SYSTEM_FOLDER = Path("/usr/share/datasets/fashion-mnist")
KINDS = ("images-idx3-ubyte", "labels-idx1-ubyte")
FILES = [f"{split}-{kind}" for split in ("train", "t10k") for kind in KINDS]
# sha256 of the unpacked files, which are the same on torchvision's mirrors and in Debian's package.
SHA256 = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
CLASSES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
SIZE = 28
SHAPES: tuple[tuple[int, ...], ...] = ((SIZE, SIZE), ())  # of one item of each kind
MAX_IMAGES = 60_000


@register("fashion_mnist")
def load_fashion_mnist(config: DataConfig) -> Source:
    """Load 60,000 + 10,000 grey images of 10 classes, 28 x 28 (Xiao et al., 2017)."""
    folder = _folder(config)
    return Source(
        name="fashion_mnist",
        num_classes=10,
        train=_read_split(folder, "train"),
        test=_read_split(folder, "t10k"),
        mean=(0.2860,),
        std=(0.3530,),
        crop_padding=2,
        flip=True,
        class_names=CLASSES,
    )


def _folder(config: DataConfig) -> Path:
    root = root_folder(config)
    folders = [root / "FashionMNIST" / "raw", SYSTEM_FOLDER]
    for folder in folders:
        if _complete(folder):
            return folder
    if not config.download:
        raise missing(
            config.name, folders, "download them with --data.download=true or apt-get install dataset-fashion-mnist"
        )
    with exclusive(root) as scratch:
        if not _complete(folders[0]):  # another rank may have done it
            _download(folders[0], scratch, config.name)
    return folders[0]


def _download(folder: Path, scratch: Path, name: str) -> None:
    datasets = require("torchvision.datasets", "torchvision", f"data.name={name}")
    try:
        fetched = Path(datasets.FashionMNIST(scratch, download=True).raw_folder)  # checks the md5 of each file
    except (OSError, RuntimeError) as error:
        raise ConfigError(f"data.name={name}: the files could not be downloaded ({error})") from error
    folder.mkdir(parents=True, exist_ok=True)
    for file in FILES:
        (fetched / file).replace(folder / file)


def _complete(folder: Path) -> bool:
    return all(_find(folder, file) for file in FILES)


def _find(folder: Path, name: str) -> Path | None:
    candidates = (folder / name, folder / f"{name}.gz")
    return next((path for path in candidates if path.is_file()), None)


def _read_split(folder: Path, split: str) -> Images:
    pixels, labels = (_read(folder, f"{split}-{kind}", shape) for kind, shape in zip(KINDS, SHAPES, strict=True))
    return Images(pixels.unsqueeze(1), labels.long())


def _read(folder: Path, name: str, item_shape: tuple[int, ...]) -> Tensor:
    path = _find(folder, name)
    assert path is not None  # as _complete checked
    return read_idx(path, item_shape, sha256=SHA256[name])


def read_idx(path: Path, item_shape: tuple[int, ...], *, sha256: str | None = None) -> Tensor:
    """Read an idx file of unsigned bytes, gzipped if so named.

    The format is two zero bytes, 8 for uint8, the number of dimensions, each dimension as a big-endian uint32, and the
    data. Unlike torchvision's reader, this one explains errors, refuses trailing bytes and reads gzip.

    Args:
        path: The file.
        item_shape: The shape that each of its items must have.
        sha256: Required digest of the unpacked file; None for any.

    Returns:
        [N, *item_shape] uint8.

    Raises:
        ConfigError: The file has the wrong type, shape or digest, or is longer or shorter than its header says.
    """
    dims = 1 + len(item_shape)
    try:
        with open_regular(path) as packed, gzip.open(packed) if path.suffix == ".gz" else packed as file:
            header = file.read(4 + 4 * dims)
            shape = [int.from_bytes(header[i : i + 4], "big") for i in range(4, len(header), 4)]
            if len(shape) != dims or header[:4] != bytes((0, 0, 8, dims)) or tuple(shape[1:]) != item_shape:
                raise ConfigError(f"{path} is not an idx file of uint8 items of shape {list(item_shape)}")
            # Bounds the next read, whatever a damaged header or a gzip bomb says.
            if not 1 <= shape[0] <= MAX_IMAGES:
                raise ConfigError(f"{path} is corrupt: its header says {shape[0]} items, not 1 to {MAX_IMAGES}")
            content = file.read(math.prod(shape) + 1)  # one more byte, to detect a longer file
    except (EOFError, OSError, zlib.error) as error:
        raise ConfigError(f"{path} can't be read ({error})") from error
    if len(content) != math.prod(shape):
        more = "more" if len(content) > math.prod(shape) else str(len(content))
        raise ConfigError(f"{path} is corrupt: its header says {math.prod(shape)} bytes of data, it holds {more}")
    found = hashlib.sha256(header + content).hexdigest()
    if sha256 is not None and found != sha256:
        raise ConfigError(
            f"{path} is corrupt or not the published file: unpacked, its sha256 is {found}, expected {sha256}; remove "
            "it and download it again, by --data.download true or apt-get install --reinstall dataset-fashion-mnist"
        )
    return torch.frombuffer(bytearray(content), dtype=torch.uint8).view(shape)
