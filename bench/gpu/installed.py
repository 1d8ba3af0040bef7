"""The libraries that sessions have put into the package: a later session must not take them for its own sources'."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from sftn_fast.utils.atomic import write_atomically

NAMES = ("_C.so", "_C_cuda.so")


class Installed:
    """Libraries that a session has copied or built, and that nobody has replaced since.

    Attributes:
        sources: Digest of the sources that they are of, None without a session.
        files: Their checksums, by name.
    """

    def __init__(self, package: Path) -> None:
        self._package, self._record = package, package.parent / "build" / "gpu-libraries.json"
        self.sources: str | None = None
        self.files: dict[str, str] = {}
        try:
            said = json.loads(self._record.read_text())
            self.sources, recorded = said["sources"], dict(said["files"])
        except (OSError, ValueError, KeyError, TypeError):
            return
        self.files = {name: recorded[name] for name in NAMES if recorded.get(name, "") == checksum(package / name)}

    def add(self, names: Iterable[str], sources: str) -> None:
        """Record that a session has put libraries of these names there."""
        self.sources = sources
        self.files |= {name: value for name in names if (value := checksum(self._package / name))}
        self._record.parent.mkdir(exist_ok=True)
        write_atomically(self._record, json.dumps({"sources": sources, "files": self.files}) + "\n")

    def remove(self) -> None:
        """Remove them."""
        for name in self.files:
            (self._package / name).unlink(missing_ok=True)
        self.files = {}


def checksum(path: Path) -> str | None:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
