"""Files and folders that are ignored when a data set is listed, and the notice that counts them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from sftn_fast.data.notices import print_once
from sftn_fast.utils.text import counted, escape

# Extensions of image files: all that Pillow has for the formats of decode.FORMATS.
ENDINGS = {
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".bmp", ".dib", ".webp", ".gif", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".avif", ".avifs", ".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"),
}
# Folders of thumbnails, deleted files and snapshots that storage and file managers create, in lower case.
SYSTEM_FOLDERS = {
    *("@eadir", "@tmp", "@recycle", "@recently-snapshot", "@sharebin", "#recycle", "#snapshot", "~snapshot"),
    *("__macosx", "lost+found", "$recycle.bin", "recycler", "recycled", "system volume information"),
    *("network trash folder", "temporary items", "__pycache__"),
}
NAMED = 5  # names that a notice lists; the rest are counted


def listing(names: list[str]) -> str:
    """Return the first few of ``names``, and how many more there are, as text."""
    more = len(names) - NAMED
    return ", ".join(escape(name) for name in names[:NAMED]) + (f" and {more} more" if more > 0 else "")


def is_image_name(name: str) -> bool:
    """Return whether a file of this name counts as an image."""
    return _ending(name) in ENDINGS


def is_system_folder(name: str) -> bool:
    """Return whether a folder of this name is hidden, or created by an operating system or file manager."""
    return name.startswith(".") or name.lower() in SYSTEM_FOLDERS


def _ending(name: str) -> str:
    _, dot, ending = name.rpartition(".")
    return f"{dot}{ending}".lower() if dot else ""


class IgnoredFiles:
    """Counts of the ignored files and folders of a data set."""

    def __init__(self) -> None:
        self.files: Counter[str] = Counter()  # not images, by extension
        self.folders: Counter[str] = Counter()  # system folders, by name
        self.hidden = 0  # files
        self.stray: list[str] = []  # images beside the class folders
        self.irregular: list[str] = []  # pipes, sockets and devices with an image's name

    def note_file(self, name: str) -> None:
        """Count a hidden file, or one that is not an image."""
        if name.startswith("."):
            self.hidden += 1
        else:
            self.files[_ending(name)] += 1

    def describe(self) -> str | None:
        """Return a summary of what was ignored in one line; None if nothing was."""
        files, parts = sum(self.files.values()), []
        if files:
            kinds = sorted(self.files.items(), key=lambda kind: (-kind[1], not kind[0], kind[0]))
            named = listing([f"{ending or 'no ending'} {count:,}" for ending, count in kinds])
            parts.append(
                f"{counted(files, 'file')} that {'are not images' if files > 1 else 'is not an image'} ({named})"
            )
        if self.hidden:
            parts.append(counted(self.hidden, "hidden file"))
        if self.stray:
            parts.append(f"{counted(len(self.stray), 'image')} in no class folder ({listing(self.stray)})")
        if self.irregular:
            parts.append(f"{len(self.irregular):,} that can't be read as files ({listing(self.irregular)})")
        if self.folders:
            names = [name + (f" ({count:,})" if count > 1 else "") for name, count in sorted(self.folders.items())]
            parts.append(f"{'folders' if len(names) > 1 else 'folder'} {listing(names)}")
        return "ignored " + ", ".join(parts) if parts else None

    def report(self, root: Path) -> None:
        """Print what was ignored below ``root``, if anything."""
        line = self.describe()
        if line:
            print_once(f"{escape(root)}: {line}")
