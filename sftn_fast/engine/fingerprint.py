"""Fingerprints of runs: the settings that must agree for a checkpoint to be resumed."""

from __future__ import annotations

import json
import re
from typing import Any

from sftn_fast.config import ConfigError, rename_keys

ABSENT = "(absent)"
FORMAT = "format"
"""Field with the version of a fingerprint's fields. Earlier versions have fewer fields and lack this one."""
SHOWN = 6
DIGEST = re.compile(r"\b([0-9a-f]{12})[0-9a-f]{52}\b")


class FingerprintMismatch(ConfigError):
    """A checkpoint or a result has other settings. ``differences`` holds ``(field, its value, this run's)``."""

    def __init__(self, differences: list[tuple[str, Any, Any]], what: str = "the checkpoint"):
        super().__init__(
            f"{what} was trained with other settings ({listing(differences)}); use --output NAME for another folder, "
            f"or --resume force to train what differs again and move the old results to the folder replaced"
        )
        self.differences = differences


def listing(differences: list[tuple[str, Any, Any]]) -> str:
    """Return the first of ``differences`` as text."""
    fields = [DIGEST.sub(r"\1..", f"{key}: {old} -> {new}") for key, old, new in differences]
    more = [f"and {len(fields) - SHOWN} more"] if len(fields) > SHOWN else []
    return "; ".join(fields[:SHOWN] + more)


def normalise(fingerprint: dict[str, Any]) -> dict[str, Any]:
    """Return ``fingerprint`` after a round trip through JSON: tuples are lists, keys are strings."""
    normal: dict[str, Any] = json.loads(json.dumps(fingerprint))
    return normal


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """Return the fields, by dotted name, in which two fingerprints differ: ``(field, old value, new value)``.

    If only the new one has :data:`FORMAT`, they are compared in the fields that both have.
    """
    before, after = _flat(normalise(rename_keys(old))), _flat(normalise(new))
    noted = before.keys() & after.keys() if FORMAT in after and FORMAT not in before else before.keys() | after.keys()
    return [
        (key, before.get(key, ABSENT), after.get(key, ABSENT))
        for key in sorted(noted)
        if before.get(key, ABSENT) != after.get(key, ABSENT)
    ]


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        leaves |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return leaves
