"""STL-10, from the published binary files."""

from __future__ import annotations

import shutil
import tarfile
import zlib
from pathlib import Path
from typing import IO

import numpy as np
from torch import from_numpy

from sftn_fast.config import ConfigError, DataConfig
from sftn_fast.data.files import (
    PublishedArchive,
    download,
    exclusive,
    missing,
    opened_verified,
    read_verified,
    root_folder,
)
from sftn_fast.data.source import Images, Source, register, require

SIZE = 96
CLASSES = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")


@register("stl10")
def load_stl10(config: DataConfig) -> Source:
    """Load 5,000 + 8,000 labelled colour images of 10 classes, 96 x 96 (Coates et al., AISTATS 2011).

    Mean and standard deviation are those of the training images; the unlabelled images are not read. Images are cropped
    after padding by an eighth of the side, as CIFAR is.
    """
    published = require("torchvision.datasets", "torchvision", "data.name=stl10").STL10
    md5 = dict(published.train_list + published.test_list)
    folder = _provide(published, root_folder(config), config)
    train, test = (_read(folder, split, md5) for split in ("train", "test"))
    return Source(
        name="stl10",
        num_classes=10,
        train=train,
        test=test,
        mean=(0.4467, 0.4398, 0.4066),
        std=(0.2603, 0.2566, 0.2713),
        crop_padding=(config.image_size or SIZE) // 8,
        flip=True,
        class_names=CLASSES,
    )


def _files(split: str) -> tuple[str, str]:
    return f"{split}_X.bin", f"{split}_y.bin"


def _read(folder: Path, split: str, md5: dict[str, str]) -> Images:
    """Read a split: bytes [N, 3, width, height], each channel column by column, and labels that start at 1."""
    pixels, labels = (np.frombuffer(read_verified(folder / name, md5[name]), np.uint8) for name in _files(split))
    upright = pixels.reshape(-1, 3, SIZE, SIZE).transpose(0, 1, 3, 2)
    return Images(from_numpy(np.ascontiguousarray(upright)), from_numpy(labels.astype(np.int64) - 1))


def _provide(published: PublishedArchive, root: Path, config: DataConfig) -> Path:
    """Return the folder of the four files; download the archive if allowed, and unpack it, unless they are there."""
    folder = root / published.base_folder
    files = [folder / name for split in ("train", "test") for name in _files(split)]
    archive = root / published.filename
    if _complete(files):
        return folder
    if not archive.is_file() and not config.download:
        raise missing("stl10", [folder], "download them with --data.download=true (2.6 GB)")
    with exclusive(root) as scratch:
        if not _complete(files):  # another rank may have done it
            if not archive.is_file():
                download(published, scratch, "stl10").replace(archive)
            _unpack(archive, published, files, scratch)
    return folder


def _complete(files: list[Path]) -> bool:
    return all(file.is_file() for file in files)


def _unpack(archive: Path, published: PublishedArchive, files: list[Path], scratch: Path) -> None:
    """Check the archive, and write its four files to paths that do not depend on it."""
    base = published.base_folder
    wanted = {f"{base}/{file.name}": file for file in files}
    try:
        with opened_verified(archive, published.tgz_md5) as file, tarfile.open(fileobj=file, mode="r:gz") as tar:
            # In the archive's order, and only as far as needed: the unlabelled images, most of it, come last.
            while wanted and (member := tar.next()) is not None:
                if member.name in wanted and member.isfile():
                    _write(tar.extractfile(member), wanted.pop(member.name), scratch)
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise ConfigError(f"{archive} can't be unpacked ({error}); remove it and download it again") from error
    if wanted:
        raise ConfigError(f"{archive} lacks {', '.join(wanted)}; remove it and download it again")


def _write(content: IO[bytes] | None, file: Path, scratch: Path) -> None:
    assert content is not None  # it is a regular file, as checked
    with (scratch / file.name).open("wb") as unpacked:
        shutil.copyfileobj(content, unpacked)
    file.parent.mkdir(exist_ok=True)
    (scratch / file.name).replace(file)
