"""ImageNet, or any subset of its classes, unpacked into one folder per class."""

from __future__ import annotations

from sftn_fast.config import DataConfig
from sftn_fast.data.image_files import ImageFiles, register_files
from sftn_fast.data.sources.folder import files_of

SIZE = 224


@register_files("imagenet")
def find_imagenet(config: DataConfig) -> ImageFiles:
    """Find ``ROOT/train/WNID/*.JPEG`` and ``ROOT/val/WNID/*.JPEG``, 224 x 224 by default.

    Source: Russakovsky et al., IJCV 2015. A label is the class's index among the sorted WordNet ids, as in
    torchvision's weights. Files in ``ROOT/skip.txt`` are skipped.
    """
    return files_of("imagenet", config, config.image_size or SIZE)
