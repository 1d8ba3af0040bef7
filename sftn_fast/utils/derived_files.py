"""Files that were made from a network's weights and lie beside them, such as ``deployed.onnx``.

``derived.json`` in the network's folder records each file's checksum and that of the weights. When other weights
replace these, a deployed file is removed if it is still what the record says. A file of anybody else's is never
removed: it is named, as are results (CSV, JSON), which take long to make.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sftn_fast.utils.atomic import write_atomically
from sftn_fast.utils.checksummed import DamagedError, checksum, fault_of, read_sealed, seal
from sftn_fast.utils.run_files import CLASSES, LOGS, NETWORK
from sftn_fast.utils.text import listed, printable

logger = logging.getLogger(__name__)

RECORD = "derived.json"
FILES = "files"
OF, DEPLOYED = "of", "deployed"
"""Keys of a file's entry beside its checksum: SHA-256 of the weights, and whether it holds the weights itself."""
SUFFIXES = (".onnx", ".pt2", ".pt", ".pth", ".ts", ".safetensors", ".csv")
"""Ends of the names of files that may be made from weights."""
RESULTS = "transfer-*.json"
"""Names of the results of ``sftn transfer``."""
OWN = (*NETWORK, *LOGS, CLASSES)
"""Names in a job's folder of files that a run writes itself."""
SHOWN = 5
"""Largest number of names in a warning."""


def record(folder: Path, file: Path, sha256: str, *, deployed: bool) -> None:
    """Record in ``folder``, of a network, that ``file`` was made from its weights; do nothing for a file elsewhere.

    Args:
        folder: Folder of the network.
        file: The file, which is complete.
        sha256: Checksum of the weights that it was made from, as in the network's ``config.json``.
        deployed: It holds the weights, and is made again in seconds. Otherwise it is a result.

    Raises:
        OSError: The record can't be written.
    """
    place, root = file.parent.resolve() / file.name, folder.resolve()
    if not place.is_relative_to(root):
        return
    entry = {**checksum(place), OF: sha256, DEPLOYED: deployed}
    _write(folder, _read(folder) | {place.relative_to(root).as_posix(): entry})


def discard(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Remove the deployed files in ``folder`` that were made from other weights than those in ``contents``.

    To be called before these are written there. Removed files, and those that may be of other weights too but are
    kept, are named in a warning.

    Args:
        folder: Folder of a network, or of none yet.
        contents: The two files of the network that will be written there, by name.

    Raises:
        OSError: A file can't be removed.
    """
    if not folder.is_dir():
        return
    sha256 = hashlib.sha256(contents[NETWORK[0]]).hexdigest()
    recorded = _read(folder)
    stale = {name: entry for name, entry in recorded.items() if entry[OF] != sha256}
    ours = [name for name, entry in stale.items() if entry[DEPLOYED] and _is_as_recorded(folder, name, entry)]
    if ours:
        for name in ours:
            (folder / name).unlink()
        _write(folder, {name: entry for name, entry in recorded.items() if name not in ours})
        names, where = listed(ours, shown=SHOWN), printable(folder, 400)
        logger.warning("%s removed from %s: made from weights that are replaced; export again", names, where)
    if _is_replaced(folder, sha256):
        kept = {name for name in stale if (folder / name).is_file()} | _unknown(folder, recorded)
        if kept:
            names = listed(sorted(kept), shown=SHOWN)
            logger.warning(
                "%s kept in %s, but may be made from weights that are replaced", names, printable(folder, 400)
            )


def _is_as_recorded(folder: Path, name: str, entry: dict[str, Any]) -> bool:
    """Return whether a file is the one that was recorded, and not replaced, moved or a link."""
    path, root = folder / name, folder.resolve()
    inside = path.resolve() == root / name and path.resolve().is_relative_to(root) and path.name not in OWN
    return inside and fault_of(path, {key: entry[key] for key in ("bytes", "sha256")}) is None


def _is_replaced(folder: Path, sha256: str) -> bool:
    """Return whether ``folder`` holds a network of other weights than those of ``sha256``, or a damaged one."""
    path = folder / NETWORK[1]
    if not path.exists():
        return False
    try:
        return bool(read_sealed(path).get("sha256") != sha256)
    except DamagedError:
        return True


def _unknown(folder: Path, recorded: dict[str, dict[str, Any]]) -> set[str]:
    """Return the names of files that nobody recorded but that may be made from the weights."""
    known = {*OWN, *recorded}
    paths = [path for path in folder.iterdir() if path.suffix in SUFFIXES] + list(folder.glob(RESULTS))
    return {path.name for path in paths if path.name not in known and not path.name.startswith(".")}


def _read(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the recorded files by name; empty without a usable record, as then nothing is known to be ours."""
    try:
        files = read_sealed(folder / RECORD).get(FILES)
    except DamagedError:
        return {}
    return {name: entry for name, entry in files.items() if _is_entry(entry)} if isinstance(files, dict) else {}


def _is_entry(entry: Any) -> bool:
    types = {"bytes": int, "sha256": str, OF: str, DEPLOYED: bool}
    return isinstance(entry, dict) and all(type(entry.get(key)) is kind for key, kind in types.items())


def _write(folder: Path, files: dict[str, dict[str, Any]]) -> None:
    if files:
        write_atomically(folder / RECORD, seal({FILES: files}))
    else:
        (folder / RECORD).unlink(missing_ok=True)
