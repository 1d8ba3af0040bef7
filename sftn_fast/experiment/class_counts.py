"""Test images by class, how many of them a network recognises: a table beside ``result.json``, which has its checksum.

A thousand classes would swell ``result.json``, so they have a table of their own.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sftn_fast.utils.atomic import write_atomically
from sftn_fast.utils.run_files import CLASSES as FILE

FIELDS = ("class", "name", "images", "right", "predicted")


def write(
    folder: Path, images: Sequence[int], right: Sequence[int], predicted: Sequence[int], names: Sequence[str]
) -> dict[str, Any]:
    """Write the counts of a stage, a line a class, into its folder; return what ``result.json`` holds of them.

    ``names`` may be empty: the classes then go by their numbers.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(FIELDS)
    shown = names or [str(number) for number in range(len(images))]
    writer.writerows(zip(range(len(images)), shown, images, right, predicted, strict=True))
    content = text.getvalue().encode("utf-8", "surrogateescape")
    write_atomically(folder / FILE, content)
    chosen = [number for number, count in enumerate(predicted) if count]
    only = shown[chosen[0]] if len(chosen) == 1 < len(images) else None
    return {"file": FILE, "sha256": hashlib.sha256(content).hexdigest(), "only_class": only}


def only_class(result: Mapping[str, Any]) -> str | None:
    """Return what is wrong if the network of ``result`` takes all test images for one class; else None."""
    only = (result.get("by_class") or {}).get("only_class")
    return None if only is None else f"it takes all test images for one class, {only!r}, and has learned nothing"
