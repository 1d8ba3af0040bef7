"""The data sets, one per module; importing this package registers all of them."""

from sftn_fast.data.sources import (  # noqa: F401
    cifar,
    digits,
    fake,
    fashion_mnist,
    folder,
    imagenet,
    stl10,
    tiny_imagenet,
)
