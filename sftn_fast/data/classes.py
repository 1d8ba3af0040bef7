"""What a run says of its classes when it begins: names, numbers of images, and what about them bodes ill."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from sftn_fast.data.left_out import listing
from sftn_fast.data.notices import say
from sftn_fast.utils.text import escape

EACH = 12  # classes that are listed with the images of each
UNBALANCED = 10  # times as many images in one class as in another


def say_classes(name: str, root: Path, classes: list[str], train: list[int], test: list[int]) -> None:
    """Print the classes of the data set ``name``, and how many images of each its splits hold; warn of great odds.

    Args:
        name: Of the data set, which lies in ``root``.
        root: Its folder.
        classes: Their names, in the order of their labels.
        train, test: Labels of the images of either split.
    """
    counts = {
        split: np.bincount(labels, minlength=len(classes)) for split, labels in (("train", train), ("test", test))
    }
    say(_describe(f"{name} in {escape(root)}", classes, counts["train"], counts["test"]), sys.stdout)
    for split, found in counts.items():
        most, fewest = int(found.argmax()), int(found.argmin())
        if found[most] >= UNBALANCED * found[fewest]:
            say(
                f"warning: of the {split} images {found[most]:,} are of class {escape(classes[most])} and "
                f"{found[fewest]:,} of {escape(classes[fewest])}; what is rare is learned badly, and accuracy "
                "hardly shows it"
            )


def _describe(which: str, classes: list[str], train: np.ndarray, test: np.ndarray) -> str:
    head = f"{which}: {len(classes):,} classes, {train.sum():,} + {test.sum():,} images to train and to test on"
    if len(classes) <= EACH:
        each = (f"{escape(c)} {a:,} + {b:,}" for c, a, b in zip(classes, train, test, strict=True))
        return f"{head}: {', '.join(each)}"
    return f"{head}, {_range(train)} + {_range(test)} a class: {listing(classes)}"


def _range(counts: np.ndarray) -> str:
    low, high = counts.min(), counts.max()
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"
