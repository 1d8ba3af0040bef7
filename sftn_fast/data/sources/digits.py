"""Handwritten digits, 8 x 8 grey: a small real data set that comes with scikit-learn and needs no download."""

from __future__ import annotations

import gzip
import hashlib
import zlib
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import from_numpy

from sftn_fast.config import ConfigError, DataConfig
from sftn_fast.data.source import Images, Source, register, require
from sftn_fast.data.splits import balanced_choice

# Of all pixels and labels, a byte each: if scikit-learn changed them, every result on them would change.
SHA256 = "a19cb3d96bba7deace8ee5a513a6eb7bad0403d528f00bf4d351b6a7a55baa91"
TRAIN_IMAGES = 1000  # 100 of each digit; scikit-learn has no official split
FILE = "datasets/data/digits.csv.gz"
"""Where scikit-learn keeps the images: a line each, of 64 greys from 0 to 16 and the digit."""


@register("digits")
def load_digits(config: DataConfig) -> Source:
    """Load 1797 images of 10 classes, in a fixed split of 1000 for training and 797 for testing.

    Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998, as in scikit-learn.
    """
    rows = _read_file()
    if rows is None or _checksum(rows) != SHA256:
        # scikit-learn knows where else the images are, but importing it takes longer than a short training's epoch.
        bunch = require("sklearn.datasets", "scikit-learn", f"data.name={config.name}").load_digits()
        rows = np.column_stack([bunch.images.reshape(len(bunch.images), -1), bunch.target])
    if (found := _checksum(rows)) != SHA256:
        raise ConfigError(
            f"data.name={config.name}: scikit-learn's digits are not the published ones: sha256 {found}, expected "
            f"{SHA256}; pip install --force-reinstall scikit-learn"
        )
    images = Images(from_numpy(_greys(rows)).unsqueeze(1), from_numpy(rows[:, -1].astype(np.int64)))
    train = balanced_choice(images.labels, TRAIN_IMAGES, "digits training set")
    is_test = torch.ones(len(rows), dtype=torch.bool)
    is_test[train] = False
    return Source(
        name="digits",
        num_classes=10,
        train=images.select(train),
        test=images.select(is_test.nonzero().flatten()),
        mean=(0.3051,),
        std=(0.3761,),
        crop_padding=1,
        flip=False,
        class_names=tuple("0123456789"),
    )


def _read_file() -> NDArray[np.float64] | None:
    """Return the rows of scikit-learn's file [1797, 65], without importing it; None if it can't be read there."""
    try:
        package = find_spec("sklearn")
        folders = package.submodule_search_locations if package else None
        if not folders:
            return None
        with gzip.open(Path(folders[0]) / FILE, "rt", encoding="ascii") as file:
            rows = np.loadtxt([*file] or ["no line"], delimiter=",", ndmin=2)  # of no line at all it only warns
    except (OSError, EOFError, ValueError, zlib.error):
        return None
    return rows if rows.shape[1] == 8 * 8 + 1 else None


def _greys(rows: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Return the images [N, 8, 8] of ``rows`` [N, 65]."""
    return np.round(rows[:, :-1].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)


def _checksum(rows: NDArray[np.float64]) -> str:
    return hashlib.sha256(_greys(rows).tobytes() + rows[:, -1].astype(np.uint8).tobytes()).hexdigest()
