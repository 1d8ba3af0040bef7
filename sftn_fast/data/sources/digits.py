"""Handwritten digits, 8 x 8 grey: a small real data set that comes with scikit-learn and needs no download."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from torch import from_numpy

from sftn_fast.config import ConfigError, DataConfig
from sftn_fast.data.source import Images, Source, register, require
from sftn_fast.data.splits import balanced_choice

# Of all pixels and labels, a byte each: if scikit-learn changed them, every result on them would change.
SHA256 = "a19cb3d96bba7deace8ee5a513a6eb7bad0403d528f00bf4d351b6a7a55baa91"
TRAIN_IMAGES = 1000  # 100 of each digit; scikit-learn has no official split


@register("digits")
def load_digits(config: DataConfig) -> Source:
    """Load 1797 images of 10 classes, in a fixed split of 1000 for training and 797 for testing.

    Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998, as in scikit-learn.
    """
    bunch = require("sklearn.datasets", "scikit-learn", f"data.name={config.name}").load_digits()
    greys = np.round(bunch.images * (255 / 16)).astype(np.uint8)  # from 0..16
    found = hashlib.sha256(greys.tobytes() + bunch.target.astype(np.uint8).tobytes()).hexdigest()
    if found != SHA256:
        raise ConfigError(
            f"data.name={config.name}: scikit-learn's digits are not the published ones: sha256 {found}, expected "
            f"{SHA256}; pip install --force-reinstall scikit-learn"
        )
    images = Images(from_numpy(greys).unsqueeze(1), from_numpy(bunch.target.astype(np.int64)))
    train = balanced_choice(images.labels, TRAIN_IMAGES, "digits training set")
    is_test = torch.ones(len(greys), dtype=torch.bool)
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
