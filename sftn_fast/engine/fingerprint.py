"""What must agree for a resumed run to be the same run."""

from __future__ import annotations

import json
from typing import Any

from sftn_fast.config import ConfigError

ABSENT = "(absent)"


class FingerprintMismatch(ConfigError):
    """A checkpoint of another configuration. ``differences`` holds ``(field, checkpoint's value, this run's)``."""

    def __init__(self, differences: list[tuple[str, Any, Any]]):
        fields = "; ".join(f"{key}: {old} -> {new}" for key, old, new in differences)
        super().__init__(f"the checkpoint is of another run ({fields}); resume=force goes on all the same")
        self.differences = differences


def normalise(fingerprint: dict[str, Any]) -> dict[str, Any]:
    """``fingerprint`` as it comes back from JSON: tuples are lists, keys are strings."""
    normal: dict[str, Any] = json.loads(json.dumps(fingerprint))
    return normal


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """Fields, by dotted name, in which two fingerprints differ: ``(field, old value, new value)``."""
    before, after = _flat(normalise(old)), _flat(normalise(new))
    return [
        (key, before.get(key, ABSENT), after.get(key, ABSENT))
        for key in sorted(before.keys() | after.keys())
        if before.get(key, ABSENT) != after.get(key, ABSENT)
    ]


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        leaves |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return leaves
