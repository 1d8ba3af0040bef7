"""ImageNet, or any subset of its classes, unpacked into a folder for each class."""

from __future__ import annotations

from sftn_fast.config import DataConfig
from sftn_fast.data.image_files import ImageFiles, register_files
from sftn_fast.data.sources.folder import files_of

SIZE = 224


@register_files("imagenet")
def find_imagenet(config: DataConfig) -> ImageFiles:
    """``ROOT/train/WNID/*.JPEG`` and ``ROOT/val/WNID/*.JPEG`` (Russakovsky et al., IJCV 2015), 224 pixels a side.

    A class's label is its place among the sorted WordNet ids, as in torchvision's weights. Files that ``ROOT/skip.txt``
    lists are left out.
    """
    return files_of("imagenet", config, config.image_size or SIZE)
