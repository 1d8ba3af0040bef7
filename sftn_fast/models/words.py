"""Names from files in messages: printable, and not too many of them."""

from __future__ import annotations

from collections.abc import Sequence


def plain(name: object, *, width: int = 200) -> str:
    """``name`` in letters that a terminal prints and obeys not, cut where it is too long."""
    text = "".join(letter if letter.isprintable() else "?" for letter in str(name)[: width + 1])
    return text if len(text) <= width else f"{text[:width]}..."


def listed(names: Sequence[object], separator: str = ", ", *, shown: int = 3) -> str:
    """The first few of ``names``, and how many there are besides."""
    more = f"{separator.rstrip()} and {len(names) - shown} more" if len(names) > shown else ""
    return separator.join(plain(name) for name in names[:shown]) + more.replace(",", "")
