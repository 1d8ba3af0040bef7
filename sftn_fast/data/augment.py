"""Random crop, horizontal flip and normalisation of a whole batch on its device; crop and resize of one large image.

Given the same offsets and flips, the pixels equal those of torchvision's ``RandomCrop(size, padding)``,
``RandomHorizontalFlip``, ``ToTensor`` and ``Normalize``: the border is black before normalisation.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sftn_fast.data.crops import Crop


def crop_flip(images: Tensor, top: Tensor, left: Tensor, flipped: Tensor, padding: int) -> Tensor:
    """Pad with zeros, cut a window of the original size out of each image, and mirror some of them.

    A single gather does this. It is faster than slicing image by image on a CPU core, and the only way without a host
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
    """Return ``(images / 255 - mean) / std`` as float32.

    Args:
        images: [B, C, H, W] uint8.
        mean, std: [C, 1, 1] float32, for pixel values from 0 to 1.
    """
    return images.float().div_(255).sub_(mean).div_(std)


def resize_cut_flip(part: Tensor, crop: Crop, size: int) -> np.ndarray:
    """Finish ``crop`` of an image: resize its box with antialiasing, cut the square out, mirror it.

    The result is a numpy view: copying it takes one thread, where torch would use all.

    Args:
        part: [3, height, width] uint8 in host memory, of any strides: the pixels inside ``crop.box``.
        crop: What to do with them.
        size: Side of the result in pixels.

    Returns:
        [3, size, size] uint8.
    """
    resized = F.interpolate(part[None], size=crop.resized, mode="bilinear", antialias=True)[0]
    top, left = crop.corner
    cut = resized.numpy()[:, top : top + size, left : left + size]
    return cut[:, :, ::-1] if crop.flipped else cut
