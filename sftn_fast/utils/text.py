"""Text that came from a file or a file's name, made safe to show: escaped, and cut where it is too long."""

from __future__ import annotations

from collections.abc import Sequence

LONGEST = 120
"""Characters of a name that are shown."""
LONGEST_MESSAGE = 4000
"""Characters of an error that are shown."""


def escape(text: object) -> str:
    """Return ``text`` in one line: control characters and bytes of a file's name that are no UTF-8 as in Python.

    A terminal would obey control characters.
    """
    return "".join(map(_escaped, str(text)))


def printable(text: object, longest: int = LONGEST) -> str:
    """Return ``text`` as :func:`escape` does, the middle left out where it is long."""
    shown = str(text)
    if len(shown) > longest:
        half = (longest - 3) // 2
        shown = f"{shown[:half]}...{shown[-half:]}"
    return escape(shown)


def listed(names: Sequence[object], separator: str = ", ", *, shown: int = 3) -> str:
    """Return the first few of ``names``, and how many there are besides."""
    more = f"{separator.rstrip()} and {len(names) - shown} more" if len(names) > shown else ""
    return separator.join(printable(name) for name in names[:shown]) + more.replace(",", "")


def printable_lines(text: object) -> str:
    """Return ``text`` as :func:`printable` does, but with its line breaks: for messages of several lines."""
    return "\n".join(printable(line, LONGEST_MESSAGE) for line in str(text)[: 2 * LONGEST_MESSAGE].split("\n"))


def for_markdown(text: str) -> str:
    """Return ``text`` so that Markdown shows it as it is: no HTML, no link and no picture comes of it."""
    return text.replace("<", "&lt;").replace("[", "\\[")


def _escaped(character: str) -> str:
    if character.isprintable():
        return character
    if 0xDC80 <= ord(character) <= 0xDCFF:  # how Python holds a byte of a file's name that is no UTF-8
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()


def one_line(message: str) -> str:
    """Return ``message`` without its line breaks."""
    return " ".join(message.split())
