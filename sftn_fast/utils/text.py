"""Text from files and file names, made safe to print: escaped, and cut if it is too long."""

from __future__ import annotations

import re
from collections.abc import Sequence
from unicodedata import category

LONGEST = 120
"""Largest number of characters of a name in a message."""
HARMFUL = ("Cc", "Cs", "Zl", "Zp")
"""Categories of control characters, halves of surrogate pairs, and ends of lines and paragraphs."""
DIRECTIONS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Characters that embed, override or isolate a writing direction."""
LONE = re.compile("[\ud800-\udc7f\udd00-\udfff]")
"""Halves of surrogate pairs, but for those by which Python stores the bytes of a name that is not UTF-8."""
LONGEST_MESSAGE = 4000
"""Largest number of characters of a message."""


def escape(text: object) -> str:
    """Return ``text`` in one line for a terminal, with escapes as in Python for the characters that can do harm.

    These are control characters, which change the terminal's state, line ends, overrides of the writing direction,
    which let a name look like another, and bytes that are not UTF-8. All others stay as they are, also those that
    Python does not call printable: the narrow space in the names of macOS's screenshots, the joiner in an emoji.
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
    if character.isprintable() or not (category(character) in HARMFUL or character in DIRECTIONS):
        return character
    if 0xDC80 <= ord(character) <= 0xDCFF:  # how Python stores a byte of a file name that is not UTF-8
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()


def as_bytes(text: str) -> bytes:
    """Return the content of a file that holds ``text``: UTF-8, in which a name keeps bytes that are not UTF-8.

    Python reads these bytes back with ``errors="surrogateescape"``. Other halves of surrogate pairs, which no file name
    has, become U+FFFD.
    """
    return LONE.sub("\ufffd", text).encode("utf-8", "surrogateescape")


def one_line(message: str) -> str:
    """Return ``message`` without its line breaks."""
    return " ".join(message.split())
