"""Per-class counts of test images and predictions: a table beside ``result.json``, which holds its checksum.

With a thousand classes, the counts would make ``result.json`` itself unwieldy.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sftn_fast.utils.atomic import write_atomically
from sftn_fast.utils.csv_text import csv_text
from sftn_fast.utils.run_files import CLASSES as FILE
from sftn_fast.utils.text import as_bytes

FIELDS = ("class", "name", "images", "right", "predicted")


def write(
    folder: Path, images: Sequence[int], right: Sequence[int], predicted: Sequence[int], names: Sequence[str]
) -> dict[str, Any]:
    """Write the counts into a job's folder, a line for each class, and return the entry for ``result.json``.

    Args:
        folder: The job's folder.
        images: Test images of each class.
        right: Those of them that the network classifies correctly.
        predicted: Test images of any class that the network assigns to this class.
        names: Class names; empty to use the class numbers.
    """
    shown = names or [str(number) for number in range(len(images))]
    rows = zip(range(len(images)), shown, images, right, predicted, strict=True)
    content = as_bytes(csv_text([FIELDS, *rows]))
    write_atomically(folder / FILE, content)
    chosen = [number for number, count in enumerate(predicted) if count]
    only = shown[chosen[0]] if len(chosen) == 1 < len(images) else None
    return {"file": FILE, "sha256": hashlib.sha256(content).hexdigest(), "only_class": only}


def only_class(result: Mapping[str, Any]) -> str | None:
    """Return a sentence if the network of ``result`` predicts the same class for all test images; else None."""
    only = (result.get("by_class") or {}).get("only_class")
    return None if only is None else f"it predicts class {only!r} for all test images and has learned nothing"
