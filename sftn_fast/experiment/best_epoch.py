"""The words for how the epoch of a network was chosen. Imports no torch, since the report says them too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

LAST, VALIDATION, TEST = "last epoch", "validation split", "test images"
"""Values of ``chosen_by`` in the ``config.json`` of an export, and in a job's result."""
IN_WORDS = {
    VALIDATION: "chosen on the validation split",
    TEST: "chosen on the test images themselves, so its top-1 is optimistic",
}
"""How the best epoch was chosen, and what that means for its accuracy."""


def is_choice(value: object) -> bool:
    """Return whether ``value``, from anybody's file, says how a best epoch was chosen."""
    return isinstance(value, str) and value in IN_WORDS


def choice(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return how a best epoch was chosen, by its ``row`` of metrics."""
    return {"chosen_by": VALIDATION} if "val_top1" in row else {"chosen_by": TEST, "optimistic": True}


def of_export(scores: Mapping[str, Any]) -> dict[str, Any]:
    """Return what ``config.json`` tells of the epoch of its weights; nothing for weights from a file."""
    keys = ("epoch", "chosen_by", "optimistic")
    return {key: scores[key] for key in keys if key in scores} if "chosen_by" in scores else {}


def chosen_by(result: Mapping[str, Any]) -> str | None:
    """Return how the best epoch in the ``result`` of a job was chosen; None if that is not known.

    Earlier versions did not record it. The images that they recorded tell.
    """
    if is_choice(recorded := result["best"].get("chosen_by")):
        return str(recorded)
    data = result.get("identity", {}).get("data")
    if not result["epochs"] or not isinstance(data, dict) or "num_val" not in data:
        return None
    return VALIDATION if data["num_val"] else TEST
