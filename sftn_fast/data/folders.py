"""Which image files a folder holds, and which classes: the same on every machine, and what is left out is counted."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sftn_fast.config import ConfigError
from sftn_fast.data.left_out import LeftOut, is_image_name, is_system_folder, listing
from sftn_fast.data.skip_list import SKIP_LIST, SkipList
from sftn_fast.utils.text import escape

MAX_DEPTH = 100  # folders within each other
MAX_WAYS = 100  # to one folder by links, which may be nested to millions
SHOWN = 200  # characters of a path in an error

Identity = tuple[int, int]  # device and inode: what a folder is, by whatever path


@dataclass(frozen=True)
class LabelledFiles:
    """Image files and the class of each."""

    paths: list[Path]
    labels: list[int]


def image_files(folder: Path, left_out: LeftOut | None = None) -> list[Path]:
    """All image files below ``folder``, sorted folder by folder.

    Hidden files and folders, a system's own folders and what is no regular file are left out, and noted in
    ``left_out``. Symbolic links are followed, but not to a folder that they lie in. A link to nowhere counts as a file,
    so that whoever reads it can complain.

    Raises:
        ConfigError: A folder can't be read, or they lie too deep within each other.
    """
    try:
        enclosing = _enclosing(folder.absolute().parent, folder.resolve().parent)
        return list(_walk(folder, enclosing, LeftOut() if left_out is None else left_out))
    except OSError as error:
        raise _unreadable(folder, error) from error


def class_names(split: Path, left_out: LeftOut | None = None) -> list[str]:
    """Names of the class folders in ``split``, sorted.

    Raises:
        ConfigError: There are none, with a hint where the images lie in ``split`` itself; or it can't be read.
    """
    left_out = LeftOut() if left_out is None else left_out
    names = []
    try:
        enclosing = _enclosing(split.absolute(), split.resolve())
        for entry in _entries(split):
            if _is_folder(entry):
                if is_system_folder(entry.name):
                    left_out.folders[entry.name] += 1
                elif _identity(entry.path) not in enclosing:
                    names.append(entry.name)
            elif _is_image(entry, left_out):
                left_out.stray.append(entry.name)
    except OSError as error:
        raise _unreadable(split, error) from error
    if names:
        return names
    held = "images, but no folder for each class" if left_out.stray else "no class folders"
    raise ConfigError(f"{split} holds {held}; it must hold {split.name}/CLASS/IMAGE.jpg")


def labelled(split: Path, classes: list[str], skipped: SkipList, left_out: LeftOut | None = None) -> LabelledFiles:
    """The images of each of ``classes`` in ``split``, less those ``skipped``; a label is a class's place in the list.

    Raises:
        ConfigError: A class has no images.
    """
    left_out = LeftOut() if left_out is None else left_out
    found = LabelledFiles([], [])
    empty = []
    for label, name in enumerate(classes):
        files = skipped.keep(image_files(split / name, left_out))
        found.paths.extend(files)
        found.labels.extend([label] * len(files))
        if not files:
            empty.append(name)
    if empty:
        line = left_out.describe()
        raise ConfigError(f"{split} has classes without an image: {listing(empty)}" + (f" ({line})" if line else ""))
    return found


def _walk(folder: Path, enclosing: frozenset[Identity], left_out: LeftOut) -> Iterator[Path]:
    ways: Counter[Identity] = Counter()
    identity = _identity(folder)
    if identity in enclosing:
        return
    # The folders on the way down, each with what is left of it and all that it lies in; no recursion, since folders
    # may be nested deeper than Python's stack.
    levels = [(iter(_entries(folder)), enclosing | {identity})]
    while levels:
        entries, within = levels[-1]
        entry = next(entries, None)
        if entry is None:
            levels.pop()
        elif not _is_folder(entry):
            if _is_image(entry, left_out):
                yield Path(entry.path)
        elif is_system_folder(entry.name):
            left_out.folders[entry.name] += 1
        elif (identity := _identity(entry.path)) not in within:
            ways[identity] += 1
            if len(levels) >= MAX_DEPTH:
                raise OSError(f"more than {MAX_DEPTH} folders within each other, down to {_shown(entry.path)}")
            if ways[identity] > MAX_WAYS:
                raise OSError(f"links lead to {_shown(entry.path)} in more than {MAX_WAYS} ways")
            levels.append((iter(_entries(entry.path)), within | {identity}))


def _entries(folder: str | Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return sorted(entries, key=lambda entry: entry.name)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    # Path.is_dir takes a link that leads to itself for no folder, where the entry's own method raises.
    return Path(entry.path).is_dir() if entry.is_symlink() else entry.is_dir()


def _is_image(entry: os.DirEntry[str], left_out: LeftOut) -> bool:
    """Whether an entry that is no folder is an image; what is none is noted in ``left_out``."""
    name = entry.name
    if name.startswith(".") or not is_image_name(name):
        if name != SKIP_LIST:
            left_out.note_file(name)
        return False
    # No pipes and devices: opening one may wait for ever.
    is_regular = entry.is_file() if not entry.is_symlink() else _leads_to_file(Path(entry.path))
    if not is_regular:
        left_out.irregular.append(name)
    return is_regular


def _leads_to_file(link: Path) -> bool:
    return link.is_file() or not link.exists()


def _identity(folder: str | Path) -> Identity:
    found = os.stat(folder)  # noqa: PTH116
    return found.st_dev, found.st_ino


def _enclosing(*folders: Path) -> frozenset[Identity]:
    """``folders`` and all folders that they lie in."""
    return frozenset(_identity(path) for folder in folders for path in (folder, *folder.parents))


def _unreadable(folder: Path, error: OSError) -> ConfigError:
    where = f" at {_shown(error.filename)}" if isinstance(error.filename, str) and error.strerror else ""
    return ConfigError(f"{_shown(str(folder))} can't be read ({error.strerror or error}{where})")


def _shown(path: str) -> str:
    """``path`` for a message, its middle left out where it is long."""
    text = escape(path)
    return text if len(text) <= SHOWN else f"{text[: SHOWN // 2]}...{text[-SHOWN // 2 :]}"
