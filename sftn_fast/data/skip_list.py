"""``ROOT/skip.txt``: the images that a data set leaves out, as ``verify`` writes them and people edit them.

A line holds one path relative to ROOT. Lines that begin with ``#`` are comments, blanks at a line's end and empty lines
do not count. A name that such a line can't hold, because of control characters, bytes that are no UTF-8, or how it
begins or ends, stands in double quotes, written as JSON writes a string. UTF-8 and, by their marks, UTF-16 are read.
"""

from __future__ import annotations

import codecs
import json
import os
from collections.abc import Iterable
from pathlib import Path

from sftn_fast.config import ConfigError
from sftn_fast.data.left_out import listing
from sftn_fast.data.notices import say
from sftn_fast.data.regular import open_regular
from sftn_fast.utils.text import escape

SKIP_LIST = "skip.txt"
MAX_BYTES = 2**30  # of the list


class SkipList:
    """What ``root/skip.txt`` leaves out of a data set, and which of its lines had an image."""

    def __init__(self, root: Path) -> None:
        self.root, self.listed = root, read_skip_list(root)
        self.matched: set[Path] = set()

    def keep(self, paths: Iterable[Path]) -> list[Path]:
        """``paths`` without those that are listed."""
        if not self.listed:
            return list(paths)
        kept = []
        for path in paths:
            if path in self.listed:
                self.matched.add(path)
            else:
                kept.append(path)
        return kept

    def report(self) -> None:
        """Say how many images were left out, since a data set should not shrink in silence, and what was not found."""
        if not self.listed:
            return
        file = escape(str(self.root / SKIP_LIST))
        say(f"images left out because {file} lists them: {len(self.matched)}")
        # An image of a split that is not used, or repaired and renamed since, is none of this data set's.
        lost = [path for path in self.listed - self.matched if not path.is_file() and not path.is_symlink()]
        if lost:
            say(f"{file} lists {len(lost)} that match no image: {listing(sorted(map(self._relative, lost)))}")

    def _relative(self, path: Path) -> str:
        return str(path.relative_to(self.root)) if path.is_relative_to(self.root) else str(path)


def read_skip_list(root: Path) -> set[Path]:
    """The paths that ``root/skip.txt`` lists; none where there is no such file.

    Raises:
        ConfigError: The list can't be read.
    """
    file = root / SKIP_LIST
    if not os.path.lexists(file):
        return set()
    try:
        with open_regular(file, MAX_BYTES) as opened:
            text = _decoded(opened.read())
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"{escape(file)} can't be read ({error})") from error
    # Not splitlines(), which also parts names at what Unicode takes for the end of a line.
    names = (_name(line) for line in text.split("\n"))
    return {root / name for name in names if name}


def _decoded(content: bytes) -> str:
    for mark in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        if content.startswith(mark):
            return content.decode("utf-16")
    if b"\0" in content:  # which no name holds: UTF-16 that lost its mark
        return content.decode("utf-16-le" if content[1:2] == b"\0" else "utf-16-be")
    return content.removeprefix(codecs.BOM_UTF8).decode("utf-8", "surrogateescape")


def _name(line: str) -> str:
    """The name that a line holds; empty if none."""
    line = line.rstrip()
    if line.startswith("#"):
        return ""
    if line.startswith('"'):
        try:
            name = json.loads(line)
        except ValueError:
            return line
        return name if isinstance(name, str) else line
    return line


def write_names(names: Iterable[str]) -> bytes:
    """The content of a list of ``names``, relative to its folder."""
    return "".join(f"{_line(name)}\n" for name in names).encode()


def _line(name: str) -> str:
    is_plain = name.isprintable() and name.strip() == name and name[:1] not in ('"', "#")
    return name if is_plain else json.dumps(name)
