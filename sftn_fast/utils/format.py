"""Quantities in readable form."""

from __future__ import annotations


def readable_bytes(count: int) -> str:
    """Return ``count`` bytes in a suitable unit."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count} bytes"
