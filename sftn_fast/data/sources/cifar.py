"""CIFAR-10 and CIFAR-100, from the published Python archives.

The archives contain pickles, and a pickle can run arbitrary code. Nothing is unpacked or unpickled before its md5 is
compared with the one that torchvision lists. Only arrays and plain values may be unpickled. From an archive only the
named batches are written, each to a path that does not depend on the archive.
"""

from __future__ import annotations

import io
import pickle
import tarfile
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from torch import from_numpy, tensor

from sftn_fast.config import ConfigError, DataConfig
from sftn_fast.data.files import PublishedArchive, download, exclusive, missing, read_verified, root_folder
from sftn_fast.data.source import Images, Source, register, require

ARRAY_MAKERS = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy.core.numeric", "_frombuffer"),  # in newer pickles
    ("_codecs", "encode"),
}

CIFAR10 = "airplane automobile bird cat deer dog frog horse ship truck"
CIFAR100 = """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
    caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant
    flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree
    motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate
    poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider
    squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle
    wardrobe whale willow_tree wolf woman worm
"""


@register("cifar10")
def load_cifar10(config: DataConfig) -> Source:
    """Load 50,000 + 10,000 colour images of 10 classes, 32 x 32 (Krizhevsky, 2009)."""
    train, test = _load(config, "CIFAR10")
    return Source(
        name="cifar10",
        num_classes=10,
        train=train,
        test=test,
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
        crop_padding=4,
        flip=True,
        class_names=tuple(CIFAR10.split()),
    )


@register("cifar100")
def load_cifar100(config: DataConfig) -> Source:
    """Load 50,000 + 10,000 colour images of 100 classes, 32 x 32; mean and standard deviation as in RepDistiller."""
    train, test = _load(config, "CIFAR100")
    return Source(
        name="cifar100",
        num_classes=100,
        train=train,
        test=test,
        mean=(0.5071, 0.4867, 0.4408),
        std=(0.2675, 0.2565, 0.2761),
        crop_padding=4,
        flip=True,
        class_names=tuple(CIFAR100.split()),
    )


def _load(config: DataConfig, class_name: str) -> tuple[Images, Images]:
    published = getattr(require("torchvision.datasets", "torchvision", f"data.name={config.name}"), class_name)
    root = root_folder(config)
    _provide(published, root, config)
    folder = root / published.base_folder
    return _read(folder, published.train_list), _read(folder, published.test_list)


def _read(folder: Path, batches: list[list[str]]) -> Images:
    entries = [_unpickle(folder / name, md5) for name, md5 in batches]
    pixels = np.concatenate([entry["data"] for entry in entries]).reshape(-1, 3, 32, 32)
    labels = [label for entry in entries for label in entry["labels" if "labels" in entry else "fine_labels"]]
    return Images(from_numpy(pixels), tensor(labels))


def _unpickle(path: Path, md5: str) -> dict[str, Any]:
    try:
        return _Unpickler(io.BytesIO(read_verified(path, md5)), encoding="latin1").load()
    except pickle.UnpicklingError as error:
        raise ConfigError(f"{path} is refused: {error}") from error


class _Unpickler(pickle.Unpickler):
    """An unpickler that may call the functions that build numpy arrays, and no others."""

    def find_class(self, module: str, name: str) -> Any:
        if (module.replace("numpy._core", "numpy.core"), name) not in ARRAY_MAKERS:
            raise pickle.UnpicklingError(f"it calls {module}.{name}")
        return super().find_class(module, name)


def _provide(published: PublishedArchive, root: Path, config: DataConfig) -> None:
    """Make sure that the batch files are in ``root``: download the archive if allowed, and unpack it."""
    batches = [root / published.base_folder / name for name, _ in published.train_list + published.test_list]
    archive = root / published.filename
    if all(batch.is_file() for batch in batches):
        return
    if not archive.is_file() and not config.download:
        raise missing(config.name, [root], "download them with --data.download=true")
    with exclusive(root) as scratch:
        if all(batch.is_file() for batch in batches):  # another rank has done it
            return
        if not archive.is_file():
            download(published, scratch, config.name).replace(archive)
        _unpack(archive, published, batches, scratch)


def _unpack(archive: Path, published: PublishedArchive, batches: list[Path], scratch: Path) -> None:
    content = io.BytesIO(read_verified(archive, published.tgz_md5))
    with tarfile.open(fileobj=content, mode="r:gz") as tar:
        for member in tar.getmembers():
            _check_member(member, archive, published.base_folder)
        for batch in batches:
            unpacked = tar.extractfile(f"{published.base_folder}/{batch.name}")
            assert unpacked is not None  # it is a regular file, as checked
            (scratch / batch.name).write_bytes(unpacked.read())
            batch.parent.mkdir(exist_ok=True)
            (scratch / batch.name).replace(batch)


def _check_member(member: tarfile.TarInfo, archive: Path, folder: str) -> None:
    path = PurePosixPath(member.name)
    inside = path.parts[:1] == (folder,) and ".." not in path.parts
    if not inside or not (member.isfile() or member.isdir()):
        raise ConfigError(f"{archive} is refused: its member {member.name!r} is not a regular file inside {folder}/")
