"""Discovery of class folders and image files, in the same order on every machine; ignored files are counted."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

from sftn_fast.config import ConfigError
from sftn_fast.data.ignored_files import IgnoredFiles, is_image_name, is_system_folder, listing
from sftn_fast.data.skip_list import SKIP_LIST, SkipList
from sftn_fast.utils.text import escape

MAX_DEPTH = 100  # levels of nested folders
MAX_WAYS = 100  # paths to one folder through links, whose number can grow exponentially
SHOWN = 200  # characters of a path in an error

Identity = tuple[int, int]  # device and inode, the same for every path to a folder


@dataclass(frozen=True)
class LabelledFiles:
    """Image files and the class of each."""

    paths: list[Path]
    labels: list[int]


def image_files(folder: Path, ignored: IgnoredFiles | None = None) -> list[Path]:
    """Return all image files below ``folder``, sorted folder by folder.

    Hidden files and folders, system folders and everything that is not a regular file are ignored. Symbolic links are
    followed, except to a folder that contains the link. A dangling link counts as a file, so that decoding it raises
    an error.

    Args:
        folder: The folder to search.
        ignored: Counts what is ignored.

    Raises:
        ConfigError: A folder can't be read, or the folders are nested too deep.
    """
    try:
        enclosing = _enclosing(folder.absolute().parent, folder.resolve().parent)
        return list(_walk(folder, enclosing, IgnoredFiles() if ignored is None else ignored))
    except OSError as error:
        raise _unreadable(folder, error) from error


def class_names(split: Path, ignored: IgnoredFiles | None = None, *, order: str = "name") -> list[str]:
    """Return the names of the class folders in ``split`` in ``order``, which is ``data.class_order``.

    Raises:
        ConfigError: ``split`` has no class folders (the message says if it has images instead), or can't be read.
    """
    ignored = IgnoredFiles() if ignored is None else ignored
    names = []
    try:
        enclosing = _enclosing(split.absolute(), split.resolve())
        for entry in _entries(split):
            if _is_folder(entry):
                if is_system_folder(entry.name):
                    ignored.folders[entry.name] += 1
                elif _identity(entry.path) not in enclosing:
                    names.append(entry.name)
            elif _is_image(entry, ignored):
                ignored.stray.append(entry.name)
    except OSError as error:
        raise _unreadable(split, error) from error
    if names:
        return in_order(names, order)
    held = "images, but no class folders" if ignored.stray else "no class folders"
    raise ConfigError(f"{split} has {held}; images must be in {split.name}/CLASS/IMAGE.jpg")


def in_order(names: list[str], order: str) -> list[str]:
    """Return the names of classes in one of ``config.CLASS_ORDERS``."""
    return sorted(names, key=_natural if order == "natural" else None)


def _natural(name: str) -> tuple[list[str | int], str]:
    """Return a key that sorts by the numbers in a name. Texts and numbers take turns in it, so they never compare."""
    parts = re.split(r"([0-9]+)", name)
    return [int(part) if odd else part for part, odd in zip(parts, cycle((False, True)), strict=False)], name


def labelled(split: Path, classes: list[str], skipped: SkipList, ignored: IgnoredFiles | None = None) -> LabelledFiles:
    """Return the images of each of ``classes`` in ``split``, with labels.

    Args:
        split: Folder of the class folders.
        classes: Their names. A label is an index into this list.
        skipped: The images to skip.
        ignored: Counts files that are not images.

    Raises:
        ConfigError: A class has no images.
    """
    ignored = IgnoredFiles() if ignored is None else ignored
    found = LabelledFiles([], [])
    empty = []
    for label, name in enumerate(classes):
        files = skipped.keep(image_files(split / name, ignored))
        found.paths.extend(files)
        found.labels.extend([label] * len(files))
        if not files:
            empty.append(name)
    if empty:
        line = ignored.describe()
        raise ConfigError(f"{split} has classes without images: {listing(empty)}" + (f" ({line})" if line else ""))
    return found


def _walk(folder: Path, enclosing: frozenset[Identity], ignored: IgnoredFiles) -> Iterator[Path]:
    ways: Counter[Identity] = Counter()
    identity = _identity(folder)
    if identity in enclosing:
        return
    # A stack of open folders: the remaining entries of each, and the folders that enclose it. No recursion, because
    # folders may be nested deeper than Python's stack.
    levels = [(iter(_entries(folder)), enclosing | {identity})]
    while levels:
        entries, within = levels[-1]
        entry = next(entries, None)
        if entry is None:
            levels.pop()
        elif not _is_folder(entry):
            if _is_image(entry, ignored):
                yield Path(entry.path)
        elif is_system_folder(entry.name):
            ignored.folders[entry.name] += 1
        elif (identity := _identity(entry.path)) not in within:
            ways[identity] += 1
            if len(levels) >= MAX_DEPTH:
                raise OSError(f"folders are nested more than {MAX_DEPTH} deep, down to {_shown(entry.path)}")
            if ways[identity] > MAX_WAYS:
                raise OSError(f"links lead to {_shown(entry.path)} by more than {MAX_WAYS} paths")
            levels.append((iter(_entries(entry.path)), within | {identity}))


def _entries(folder: str | Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return sorted(entries, key=lambda entry: entry.name)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    # Path.is_dir returns False for a link to itself, where the entry's own method raises.
    return Path(entry.path).is_dir() if entry.is_symlink() else entry.is_dir()


def _is_image(entry: os.DirEntry[str], ignored: IgnoredFiles) -> bool:
    """Return whether ``entry``, which is not a folder, is an image; count it in ``ignored`` if not."""
    name = entry.name
    if name.startswith(".") or not is_image_name(name):
        if name != SKIP_LIST:
            ignored.note_file(name)
        return False
    # No pipes and devices: opening one may block forever.
    is_regular = entry.is_file() if not entry.is_symlink() else _leads_to_file(Path(entry.path))
    if not is_regular:
        ignored.irregular.append(name)
    return is_regular


def _leads_to_file(link: Path) -> bool:
    return link.is_file() or not link.exists()


def _identity(folder: str | Path) -> Identity:
    found = os.stat(folder)  # noqa: PTH116
    return found.st_dev, found.st_ino


def _enclosing(*folders: Path) -> frozenset[Identity]:
    """Return the identities of ``folders`` and of all folders that contain them."""
    return frozenset(_identity(path) for folder in folders for path in (folder, *folder.parents))


def _unreadable(folder: Path, error: OSError) -> ConfigError:
    where = f" at {_shown(error.filename)}" if isinstance(error.filename, str) and error.strerror else ""
    return ConfigError(f"{_shown(str(folder))} can't be read ({error.strerror or error}{where})")


def _shown(path: str) -> str:
    """Return ``path`` for a message, its middle removed if it is long."""
    text = escape(path)
    return text if len(text) <= SHOWN else f"{text[: SHOWN // 2]}...{text[-SHOWN // 2 :]}"
