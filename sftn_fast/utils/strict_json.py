"""Strict JSON, which every JSON parser reads. Python's own writes NaN and infinity, which JSON does not have."""

from __future__ import annotations

import json
import math
from typing import Any


def dumps(value: Any, *, indent: int | None = None) -> str:
    """Return ``value`` as JSON, with null for each number that is not finite."""
    return json.dumps(finite_or_null(value), indent=indent, allow_nan=False)


def finite_or_null(value: Any) -> Any:
    """Return a copy of ``value`` (dicts, lists, plain values) with None for each number that is not finite."""
    if isinstance(value, dict):
        return {key: finite_or_null(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite_or_null(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
