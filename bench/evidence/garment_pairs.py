"""Make a task of 100 classes of Fashion-MNIST: `python -m bench.evidence.garment_pairs [--root data/garment_pairs]`.

Each image shows two garments beside each other, at half their width, in the size of one: 28 x 28 pixels. Its class is
the pair of theirs, in order: left and right. No garment occurs twice, and training and test images are made of the
data set's own training and test images. The folder is read by ``--data.name folder --data.grey true``.
"""

from __future__ import annotations

import argparse
import itertools
import shutil
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from sftn_fast.config import DataConfig
from sftn_fast.data.source import Images
from sftn_fast.data.sources.fashion_mnist import CLASSES, load_fashion_mnist

SEED = 0


def half_width(pixels: Tensor) -> Tensor:
    """Return uint8 images [N, H, W] at half their width, [N, H, W / 2]: each pixel is the mean of two."""
    return pixels.unflatten(-1, (-1, 2)).float().mean(-1).round().to(torch.uint8)


def pairs(images: Images, per_class: int, seed: int) -> dict[tuple[int, int], Tensor]:
    """Return ``per_class`` images of two garments, [per_class, H, W] in uint8, for each pair of classes.

    Raises:
        ValueError: There are not enough garments of a class to use each once.
    """
    halves, labels = half_width(images.pixels.squeeze(1)), images.labels
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    count = int(labels.max()) + 1
    of_class = [order[labels[order] == label] for label in range(count)]
    needed = 2 * count * per_class  # as often on the left as on the right
    least = min(map(len, of_class))
    if least < needed:
        raise ValueError(f"{per_class} images a class need {needed} garments of each kind, there are {least}")
    shares = [iter(indices[:needed].split(per_class)) for indices in of_class]
    return {
        (left, right): torch.cat([halves[next(shares[left])], halves[next(shares[right])]], dim=-1)
        for left, right in itertools.product(range(count), repeat=2)
    }


def class_name(left: int, right: int) -> str:
    """Return the name of a pair's folder, such as ``46 Coat and Shirt``; names are in the order of the classes."""
    return f"{left}{right} {CLASSES[left]} and {CLASSES[right]}".replace("/", " or ")


def write(root: Path, per_class: int, test_per_class: int) -> None:
    """Write ``root/train`` and ``root/test``, which must not exist."""
    source = load_fashion_mnist(DataConfig(name="fashion_mnist"))
    parts = (("train", source.train, per_class), ("test", source.test, test_per_class))
    made = {part: pairs(images, count, SEED) for part, images, count in parts}
    root.mkdir(parents=True)
    try:
        for part, of_pair in made.items():
            for pair, images in of_pair.items():
                folder = root / part / class_name(*pair)
                folder.mkdir(parents=True)
                for number, image in enumerate(images.numpy()):
                    Image.fromarray(image).save(folder / f"{number:03d}.png")
    except BaseException:
        shutil.rmtree(root)  # half a data set would be trained on
        raise


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.evidence.garment_pairs", description="Make garment pairs.")
    parser.add_argument("--root", type=Path, default=Path("data/garment_pairs"), help="default: %(default)s")
    parser.add_argument("--images", type=int, default=50, help="training images of each class (default: %(default)s)")
    parser.add_argument("--test-images", type=int, default=50, help="test images of each class (default: %(default)s)")
    args = parser.parse_args()
    if args.root.exists():
        parser.error(f"{args.root} exists")
    try:
        write(args.root, args.images, args.test_images)
    except ValueError as error:
        parser.error(str(error))
    print(f"{args.root}: 100 classes of {args.images} training and {args.test_images} test images, 28 x 28, grey")


if __name__ == "__main__":
    main()
