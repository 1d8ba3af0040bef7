"""Text from files and file names, made safe to print: escaped, and cut if it is too long."""

from __future__ import annotations

from collections.abc import Sequence

LONGEST = 120
"""Largest number of characters of a name in a message."""
LONGEST_MESSAGE = 4000
"""Largest number of characters of a message."""


def escape(text: object) -> str:
    """Return ``text`` in one line, with escapes as in Python for control characters and bytes that are not UTF-8.

    Control characters could change the state of the terminal.
    """
    return "".join(map(_escaped, str(text)))


def printable(text: object, longest: int = LONGEST) -> str:
    """Return ``text`` escaped by :func:`escape`, without its middle if it is long."""
    shown = str(text)
    if len(shown) > longest:
        half = (longest - 3) // 2
        shown = f"{shown[:half]}...{shown[-half:]}"
    return escape(shown)


def listed(names: Sequence[object], separator: str = ", ", *, shown: int = 3) -> str:
    """Return the first few ``names`` and the number of the others."""
    more = f"{separator.rstrip()} and {len(names) - shown} more" if len(names) > shown else ""
    return separator.join(printable(name) for name in names[:shown]) + more.replace(",", "")


def counted(number: int, what: str) -> str:
    """Return ``number`` with the noun ``what`` in its singular or plural, as in "1,024 images"."""
    return f"{number:,} {what}{'s' * (number != 1)}"


def printable_lines(text: object) -> str:
    """Return ``text`` as :func:`printable` does, but keep its line breaks, for messages of several lines."""
    return "\n".join(printable(line, LONGEST_MESSAGE) for line in str(text)[: 2 * LONGEST_MESSAGE].split("\n"))


def for_markdown(text: str) -> str:
    """Return ``text`` escaped for Markdown, so that it contains no HTML, link or picture."""
    return text.replace("<", "&lt;").replace("[", "\\[")


def _escaped(character: str) -> str:
    if character.isprintable():
        return character
    if 0xDC80 <= ord(character) <= 0xDCFF:  # how Python stores a byte of a file name that is not UTF-8
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()


def one_line(message: str) -> str:
    """Return ``message`` without its line breaks."""
    return " ".join(message.split())
