"""What discovery passes over: which names are a system's and not a user's, and a line that says what was left out."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from sftn_fast.data.notices import say
from sftn_fast.utils.text import escape

# Image files by their names: every ending that Pillow has for the formats of decode.FORMATS.
ENDINGS = {
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".bmp", ".dib", ".webp", ".gif", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".avif", ".avifs", ".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"),
}
# Folders of thumbnails, deleted files and snapshots that storage and file managers make, in small letters.
SYSTEM_FOLDERS = {
    *("@eadir", "@tmp", "@recycle", "@recently-snapshot", "@sharebin", "#recycle", "#snapshot", "~snapshot"),
    *("__macosx", "lost+found", "$recycle.bin", "recycler", "recycled", "system volume information"),
    *("network trash folder", "temporary items", "__pycache__"),
}
NAMED = 5  # names that a line lists before it only counts


def listing(names: list[str]) -> str:
    """The first few of ``names``, and how many more there are."""
    more = len(names) - NAMED
    return ", ".join(escape(name) for name in names[:NAMED]) + (f" and {more} more" if more > 0 else "")


def is_image_name(name: str) -> bool:
    """Whether a file of this name is taken for an image."""
    return _ending(name) in ENDINGS


def is_system_folder(name: str) -> bool:
    """Whether a folder of this name is no user's: hidden, or made by a system for itself."""
    return name.startswith(".") or name.lower() in SYSTEM_FOLDERS


def _ending(name: str) -> str:
    _, dot, ending = name.rpartition(".")
    return f"{dot}{ending}".lower() if dot else ""


class LeftOut:
    """Counts what was passed over in a data set's folders, to be said in one line."""

    def __init__(self) -> None:
        self.files: Counter[str] = Counter()  # no images, by the endings of their names
        self.folders: Counter[str] = Counter()  # by name
        self.hidden = 0  # files
        self.stray: list[str] = []  # images beside the class folders
        self.irregular: list[str] = []  # pipes, sockets and devices that are named as images are

    def note_file(self, name: str) -> None:
        """Count a file that is no image, or a hidden one."""
        if name.startswith("."):
            self.hidden += 1
        else:
            self.files[_ending(name)] += 1

    def describe(self) -> str | None:
        """What was left out, in one line; None if that is nothing."""
        files, parts = sum(self.files.values()), []
        if files:
            kinds = sorted(self.files.items(), key=lambda kind: (-kind[1], not kind[0], kind[0]))
            named = listing([f"{ending or 'no ending'} {count:,}" for ending, count in kinds])
            parts.append(f"{_count(files, 'file')} that {'are no images' if files > 1 else 'is no image'} ({named})")
        if self.hidden:
            parts.append(_count(self.hidden, "hidden file"))
        if self.stray:
            parts.append(f"{_count(len(self.stray), 'image')} in no class's folder ({listing(self.stray)})")
        if self.irregular:
            parts.append(f"{len(self.irregular):,} that can't be read as files ({listing(self.irregular)})")
        if self.folders:
            names = [name + (f" ({count:,})" if count > 1 else "") for name, count in sorted(self.folders.items())]
            parts.append(f"{'folders' if len(names) > 1 else 'folder'} {listing(names)}")
        return "left out: " + ", ".join(parts) if parts else None

    def report(self, root: Path) -> None:
        """Say what was left out below ``root``, if anything."""
        line = self.describe()
        if line:
            say(f"{escape(root)}: {line}")


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number > 1)}"
