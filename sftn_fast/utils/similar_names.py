"""Names that somebody may have meant: those that differ in capitals, underscores and hyphens, else similar ones."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def folded(name: str) -> str:
    """Return ``name`` in lower case without underscores and hyphens, which people write differently."""
    return name.lower().replace("_", "").replace("-", "")


def nearest(name: str, known: Iterable[str]) -> list[str]:
    """Return the ``known`` names that ``name`` may stand for, the best first; empty if none is similar."""
    by_folded: dict[str, list[str]] = {}
    for other in known:
        by_folded.setdefault(folded(other), []).append(other)
    close = difflib.get_close_matches(folded(name), by_folded, n=2, cutoff=0.7)
    matches = [folded(name)] if folded(name) in by_folded else close
    return [other for match in matches for other in by_folded[match]]


def did_you_mean(names: Iterable[str]) -> str:
    """Return the hint on ``names`` to be put after a message; empty if there are none."""
    listed = list(dict.fromkeys(names))
    return f"; did you mean {' or '.join(listed)}?" if listed else ""
