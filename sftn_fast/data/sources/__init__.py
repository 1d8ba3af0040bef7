"""One module a data set; importing this registers them all."""

from sftn_fast.data.sources import cifar, digits, fake, fashion_mnist  # noqa: F401
