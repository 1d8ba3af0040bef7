"""Test images as PNG files, to try a trained network on."""

from __future__ import annotations

import io
import re

from sftn_fast.config import ConfigError
from sftn_fast.data.decode import pillow
from sftn_fast.data.image_data import ImageData
from sftn_fast.data.loaders import EvalLoader

MOST = 10
"""Largest number of files. Of more classes, the first ones have a file each."""
LONGEST = 60
"""Characters of a class's name in a file's name."""


def sample_files(images: ImageData) -> dict[str, bytes]:
    """Return the first test image of each class as a PNG file, by the file's name, such as ``3.png`` or ``0-cat.png``.

    There are none for images that are decoded on demand, which are files already, nor without Pillow.
    """
    if not isinstance(images.test, EvalLoader) or images.in_channels not in (1, 3):
        return {}
    try:
        image = pillow()[0]
    except ConfigError:  # predict, which is what the files are for, says so
        return {}
    pixels, labels = images.test.data.pixels, images.test.data.labels.tolist()
    files = {}
    for label in range(min(images.num_classes, MOST)):
        if label in labels:
            square = pixels[labels.index(label)].permute(1, 2, 0).cpu().numpy()  # [H, W, C]
            content = io.BytesIO()
            image.fromarray(square[..., 0] if images.in_channels == 1 else square).save(content, "PNG")
            files[f"{_stem(images, label)}.png"] = content.getvalue()
    return files


def _stem(images: ImageData, label: int) -> str:
    """Return the label and the class's name, with characters that every file system takes."""
    name = re.sub(r"[^A-Za-z0-9_+=-]+", "_", images.class_names[label])[:LONGEST] if images.class_names else ""
    return str(label) if name in ("", str(label)) else f"{label}-{name}"
