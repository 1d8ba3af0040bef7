"""``ROOT/skip.txt``, the list of images to skip, as ``verify`` writes it and users edit it.

Each line is one path relative to ROOT. Lines that begin with ``#`` are comments. Empty lines and spaces at the end of a
line do not count. A name that does not fit such a line is written as a JSON string, in double quotes: one with control
characters, with bytes that are not UTF-8, or with a special first or last character. The file is read as UTF-8, or as
UTF-16 if it has a byte order mark or null bytes.
"""

from __future__ import annotations

import codecs
import json
import os
from collections.abc import Iterable
from pathlib import Path

from sftn_fast.config import ConfigError
from sftn_fast.data.ignored_files import listing
from sftn_fast.data.notices import print_once
from sftn_fast.data.regular_files import open_regular
from sftn_fast.utils.text import counted, escape

SKIP_LIST = "skip.txt"
MAX_BYTES = 2**30  # of the list


class SkipList:
    """The paths in ``root/skip.txt``, and which of them matched an image."""

    def __init__(self, root: Path) -> None:
        self.root, self.listed = root, read_skip_list(root)
        self.matched: set[Path] = set()

    def keep(self, paths: Iterable[Path]) -> list[Path]:
        """Return ``paths`` without the listed ones."""
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
        """Print how many images were skipped, and which lines matched none: a data set should not shrink silently."""
        if not self.listed:
            return
        file = escape(str(self.root / SKIP_LIST))
        print_once(f"images skipped, as listed in {file}: {len(self.matched)}")
        # A listed file that exists belongs to a split that is not used: no need to report it.
        lost = [path for path in self.listed - self.matched if not path.is_file() and not path.is_symlink()]
        if lost:
            names = listing(sorted(map(self._relative, lost)))
            matches = "matches" if len(lost) == 1 else "match"
            print_once(f"{file} lists {counted(len(lost), 'path')} that {matches} no image: {names}")

    def _relative(self, path: Path) -> str:
        return str(path.relative_to(self.root)) if path.is_relative_to(self.root) else str(path)


def read_skip_list(root: Path) -> set[Path]:
    """Return the paths that ``root/skip.txt`` lists; an empty set if there is no such file.

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
    # Not splitlines(), which also splits at Unicode's line separators, and a name may contain one.
    names = (_name(line) for line in text.split("\n"))
    return {root / name for name in names if name}


def _decoded(content: bytes) -> str:
    for mark in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        if content.startswith(mark):
            return content.decode("utf-16")
    if b"\0" in content:  # no name contains one: UTF-16 without its byte order mark
        return content.decode("utf-16-le" if content[1:2] == b"\0" else "utf-16-be")
    return content.removeprefix(codecs.BOM_UTF8).decode("utf-8", "surrogateescape")


def _name(line: str) -> str:
    """Return the name in a line; empty if there is none."""
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
    """Return the content of a skip list with ``names``, relative to its folder."""
    return "".join(f"{_line(name)}\n" for name in names).encode()


def _line(name: str) -> str:
    is_plain = escape(name) == name and name.strip() == name and name[:1] not in ('"', "#", "\ufeff")
    return name if is_plain else json.dumps(name)
