"""Synthetic images that a small network learns in a few steps, for tests and for trying a setup without any files."""

from __future__ import annotations

import numpy as np
from torch import from_numpy

from sftn_fast.config import DataConfig
from sftn_fast.data.resources import require_memory
from sftn_fast.data.seeding import generator
from sftn_fast.data.source import Images, Source, register

CLASSES, CHANNELS, SIZE = 10, 3, 32
TRAIN_IMAGES, TEST_IMAGES = 512, 256
TILE = 8  # side in pixels of the tiles of a class's pattern, coarse enough to survive a random crop
BLOCK = 512  # images per random key, so that a larger set begins with the smaller one


@register("fake")
def load_fake(config: DataConfig) -> Source:
    """Generate 32 x 32 colour images of 10 classes: a class's pattern of random tiles and as much uniform noise.

    There are 512 training images, more if ``train_size`` and ``val_size`` ask for more, and 256 test images.
    """
    wanted = (config.train_size or 0) + config.val_size
    require_memory(wanted, CHANNELS, SIZE)
    return Source(
        name="fake",
        num_classes=CLASSES,
        train=_draw("train", max(TRAIN_IMAGES, wanted)),
        test=_draw("test", TEST_IMAGES),
        mean=(0.5, 0.5, 0.5),
        std=(0.2, 0.2, 0.2),
        crop_padding=2,
        flip=False,
        class_names=tuple(f"pattern {number}" for number in range(CLASSES)),
    )


def _draw(split: str, count: int) -> Images:
    tiles = generator("fake patterns").integers(
        256, size=(CLASSES, CHANNELS, SIZE // TILE, SIZE // TILE), dtype=np.uint8
    )
    patterns = tiles.repeat(TILE, axis=2).repeat(TILE, axis=3)
    labels = np.arange(count) % CLASSES
    pixels = np.empty((count, CHANNELS, SIZE, SIZE), np.uint8)
    for start in range(0, count, BLOCK):
        noise = generator("fake noise", split, start).integers(256, size=(BLOCK, *pixels.shape[1:]), dtype=np.uint8)
        block = slice(start, min(start + BLOCK, count))
        # Halved before the sum, so that it fits a byte.
        pixels[block] = patterns[labels[block]] // 2 + noise[: block.stop - start] // 2
    return Images(from_numpy(pixels), from_numpy(labels))
