"""Report of a data set's classes when a run starts: names, images per class, and a warning if they are unbalanced."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from sftn_fast.data.ignored_files import listing
from sftn_fast.data.notices import print_once
from sftn_fast.utils.text import escape

EACH = 12  # up to so many classes are listed with their number of images
UNBALANCED = 10  # ratio of the largest class to the smallest from which a warning is printed


def report_class_counts(name: str, root: Path, classes: list[str], train: list[int], test: list[int]) -> None:
    """Print the classes of a data set and the images per class in both splits; warn if a split is unbalanced.

    Args:
        name: The data set's name.
        root: Its folder.
        classes: Class names, in the order of their labels.
        train, test: Labels of the images of each split.
    """
    counts = {
        split: np.bincount(labels, minlength=len(classes)) for split, labels in (("train", train), ("test", test))
    }
    print_once(_describe(f"{name} in {escape(root)}", classes, counts["train"], counts["test"]), sys.stdout)
    for split, found in counts.items():
        most, fewest = int(found.argmax()), int(found.argmin())
        if found[most] >= UNBALANCED * found[fewest]:
            print_once(
                f"warning: the {split} images are unbalanced: {found[most]:,} of class {escape(classes[most])}, "
                f"{found[fewest]:,} of {escape(classes[fewest])}; rare classes are learned badly, and accuracy hardly "
                "shows it"
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
