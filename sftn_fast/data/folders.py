"""Which image files a folder holds, and which classes: the same on every machine, hidden things left out."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sftn_fast.config import ConfigError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff", ".gif")
SKIP_LIST = "skip.txt"
NAMED = 5  # names that an error lists before it only counts

Identity = tuple[int, int]  # device and inode: what a folder is, by whatever path


@dataclass(frozen=True)
class LabelledFiles:
    """Image files and the class of each."""

    paths: list[Path]
    labels: list[int]


def image_files(folder: Path) -> list[Path]:
    """All image files below ``folder``, sorted folder by folder.

    Files and folders whose names begin with a dot are left out. Symbolic links are followed, but not to a folder that
    they lie in. A link to nowhere counts as a file, so that whoever reads it can complain.

    Raises:
        ConfigError: A folder can't be read.
    """
    try:
        return list(_walk(folder, _enclosing(folder.absolute().parent, folder.resolve().parent)))
    except OSError as error:
        raise ConfigError(f"{folder} can't be read ({error})") from error


def class_names(split: Path) -> list[str]:
    """Names of the class folders in ``split``, sorted.

    Raises:
        ConfigError: There are none, with a hint where the images lie in ``split`` itself; or it can't be read.
    """
    try:
        enclosing = _enclosing(split.absolute(), split.resolve())
        entries = [entry for entry in _visible(split) if _is_folder(entry) and _identity(entry.path) not in enclosing]
    except OSError as error:
        raise ConfigError(f"{split} can't be read ({error})") from error
    if entries:
        return [entry.name for entry in entries]
    flat = any(_is_image(entry) for entry in _visible(split))
    held = "images, but no folder for each class" if flat else "no class folders"
    raise ConfigError(f"{split} holds {held}; it must hold {split.name}/CLASS/IMAGE.jpg")


def labelled(split: Path, classes: list[str], skipped: set[Path]) -> LabelledFiles:
    """The images of each of ``classes`` in ``split``, less those ``skipped``; a label is a class's place in the list.

    Raises:
        ConfigError: A class has no images.
    """
    found = LabelledFiles([], [])
    empty = []
    for label, name in enumerate(classes):
        files = [path for path in image_files(split / name) if path not in skipped]
        found.paths.extend(files)
        found.labels.extend([label] * len(files))
        if not files:
            empty.append(name)
    if empty:
        raise ConfigError(f"{split} has classes without an image: {listing(empty)}")
    return found


def listing(names: list[str]) -> str:
    """The first few of ``names``, and how many more there are."""
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")


def read_skip_list(root: Path) -> set[Path]:
    """The files that ``root/skip.txt`` leaves out: a path relative to ``root`` on each line; empty if there is none.

    Says on standard error how many there are: a data set should not shrink in silence.

    Raises:
        ConfigError: The list can't be read.
    """
    file = root / SKIP_LIST
    if not file.is_file():
        return set()
    try:
        # Not splitlines(), which also parts names at what Unicode takes for the end of a line.
        lines = file.read_text(encoding="utf-8", errors="surrogateescape").split("\n")
    except OSError as error:
        raise ConfigError(f"{file} can't be read ({error})") from error
    skipped = {root / line for line in lines if line}
    print(f"images left out because {file} lists them: {len(skipped)}", file=sys.stderr)
    return skipped


def _walk(folder: Path, enclosing: frozenset[Identity]) -> Iterator[Path]:
    identity = _identity(folder)
    if identity in enclosing:
        return
    for entry in _visible(folder):
        if _is_folder(entry):
            yield from _walk(Path(entry.path), enclosing | {identity})
        elif _is_image(entry):
            yield Path(entry.path)


def _visible(folder: Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    # Path.is_dir takes a link that leads to itself for no folder, where the entry's own method raises.
    return Path(entry.path).is_dir() if entry.is_symlink() else entry.is_dir()


def _is_image(entry: os.DirEntry[str]) -> bool:
    # No pipes and devices: opening one may wait for ever.
    return entry.name.lower().endswith(EXTENSIONS) and (entry.is_symlink() or entry.is_file())


def _identity(folder: str | Path) -> Identity:
    found = os.stat(folder)  # noqa: PTH116
    return found.st_dev, found.st_ino


def _enclosing(*folders: Path) -> frozenset[Identity]:
    """``folders`` and all folders that they lie in."""
    return frozenset(_identity(path) for folder in folders for path in (folder, *folder.parents))
