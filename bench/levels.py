"""The levels of vector instructions that one machine is measured at."""

from __future__ import annotations

from typing import Any

from sftn_fast.ops import _capability

ALL = _capability.LEVELS
BOTH = ("avx2", "avx512")
"""Levels to measure side by side where a machine has both: most processors in use have one of them."""


def to_measure() -> tuple[str, ...]:
    """Return the levels to measure the kernels at, in ascending order: both, or the one in use."""
    current = _capability.current()
    return BOTH if set(BOTH) <= set(_capability.available()) else () if current is None else (current,)


def missing() -> str | None:
    """Return why both levels can't be measured though the machine has them, or None."""
    if set(BOTH) <= set(_capability.of_machine()) and len(to_measure()) == 1:
        return f"only level {_capability.current()} is built: {_capability.REBUILD}"
    return None


def of(about: dict[str, Any]) -> str:
    """Return the level that a measurement with these conditions used."""
    # Kernels without a switch used the machine's highest level, as PyTorch did.
    return str(about.get("level") or about["simd"].lower())
