"""One module a data set; importing this registers them all."""

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
