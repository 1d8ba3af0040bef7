"""Random crop, horizontal flip and normalisation of a whole batch at once, on whatever device it lies; one large image.

Pixel for pixel what torchvision's ``RandomCrop(size, padding)``, ``RandomHorizontalFlip``, ``ToTensor``, ``Normalize``
make of the same offsets and flips: the border is black before it is normalised.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sftn_fast.data.views import View


def crop_flip(images: Tensor, top: Tensor, left: Tensor, flipped: Tensor, padding: int) -> Tensor:
    """Pad with zeros, cut a window of the original size out of each image, and mirror some of them.

    One gather does it: on a CPU core faster than slicing image by image, and the only way without a host
    synchronisation on a GPU.

    Args:
        images: [B, C, H, W], any dtype.
        top, left: [B] int64, the window's corner in the padded image, 0 .. 2 * padding.
        flipped: [B] bool.
        padding: Pixels on each side.

    Returns:
        [B, C, H, W], the dtype of ``images``.
    """
    batch, channels, height, width = images.shape
    padded = F.pad(images, (padding, padding, padding, padding))
    rows = torch.arange(height, device=images.device)
    columns = torch.arange(width, device=images.device)
    columns = torch.where(flipped[:, None], width - 1 - columns, columns)
    source_row = top[:, None] + rows  # [B, H]
    source_column = left[:, None] + columns  # [B, W]
    source = source_row[:, :, None] * padded.shape[3] + source_column[:, None, :]  # [B, H, W] into the flat image
    source = source.view(batch, 1, height * width).expand(-1, channels, -1)
    return padded.flatten(2).gather(2, source).view(images.shape)


def normalize(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """``(images / 255 - mean) / std`` as float32.

    Args:
        images: [B, C, H, W] uint8.
        mean, std: [C, 1, 1] float32, for pixel values from 0 to 1.
    """
    return images.float().div_(255).sub_(mean).div_(std)


def resize_cut_flip(part: Tensor, view: View, size: int) -> np.ndarray:
    """What ``view`` makes of the box that was cut out of an image: resized with antialiasing, cut, mirrored.

    The result is a numpy view, which whoever copies it does in one thread, where torch would use all.

    Args:
        part: [3, height, width] uint8 in memory, of any strides.
        view: Its ``box`` is ``part``.
        size: Side of the result.

    Returns:
        [3, size, size] uint8.
    """
    resized = F.interpolate(part[None], size=view.resized, mode="bilinear", antialias=True)[0]
    top, left = view.corner
    cut = resized.numpy()[:, top : top + size, left : left + size]
    return cut[:, :, ::-1] if view.flipped else cut
