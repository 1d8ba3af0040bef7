"""Checkpoints that survive a kill, a full disk and a flipped bit.

``step_000000123/`` holds ``state.pt`` and ``manifest.json`` with its size and SHA-256. The folder is written under a
temporary name, manifest last, synced and renamed. A folder with the final name is therefore complete, and its checksum
detects later damage.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from sftn_fast.utils.atomic import remove, sync_folder, write_synced
from sftn_fast.utils.checksummed import DamagedError, read_regular
from sftn_fast.utils.text import printable

logger = logging.getLogger(__name__)

TEMPORARY = ".tmp_"
NAME = re.compile(r"step_(\d{9,})")
LARGEST = 2**50  # bytes of a state; its real size is in the manifest
FAILURES_ALLOWED = 2  # in a row; the third ends the run, which could only lose more work


class CheckpointError(RuntimeError):
    """A checkpoint can't be written, or no checkpoint can be read."""


class FolderGoneError(CheckpointError):
    """The folder for checkpoints was removed: further training would be lost."""


class CheckpointStore:
    """The checkpoints in ``folder``. It keeps the newest ``keep`` of them. Only one process may use it at a time."""

    def __init__(self, folder: Path, *, keep: int = 2):
        self.folder, self.keep = folder, keep
        self._failures = 0
        folder.mkdir(parents=True, exist_ok=True)
        for stale in folder.glob(f"{TEMPORARY}*"):
            with contextlib.suppress(OSError):
                remove(stale)

    def steps(self) -> list[int]:
        """Return the steps of all checkpoints, valid or not, newest first."""
        return sorted((int(found[1]) for path in self.folder.iterdir() if (found := _named(path))), reverse=True)

    def path(self, step: int) -> Path:
        """Return the path of the checkpoint of ``step``, which need not exist."""
        return self.folder / f"step_{step:09d}"

    def save(self, step: int, state: dict[str, Any]) -> Path:
        """Write ``state`` (tensors and plain Python values) as the checkpoint of ``step``, then remove old ones.

        These are all but the newest ``keep``, and all of later steps: those are invalid, since the run was resumed from
        an earlier one.

        Raises:
            CheckpointError: it can't be written. Nothing of it remains, and the older ones are unchanged.
        """
        final, temporary = self.path(step), self.folder / f"{TEMPORARY}{step:09d}"
        # In memory first: a full disk then raises an OSError instead of aborting inside torch's zip writer.
        buffer = io.BytesIO()
        torch.save(state, buffer)
        payload = buffer.getbuffer()
        manifest = {
            "step": step,
            "bytes": len(payload),
            "sha256": hashlib.sha256(payload).hexdigest(),
            "torch": torch.__version__,
        }
        replaced: Path | None = None
        try:
            if not self.folder.is_dir():
                raise FolderGoneError(f"checkpoint {final} can't be written: the run's folder was removed")
            temporary.mkdir()
            write_synced(temporary / "state.pt", payload)
            write_synced(temporary / "manifest.json", json.dumps(manifest, indent=1).encode())
            sync_folder(temporary)
            replaced = self._set_aside(final)
            temporary.rename(final)
            sync_folder(self.folder)
        except OSError as error:
            shutil.rmtree(temporary, ignore_errors=True)
            if replaced is not None and replaced.exists() and not final.exists():
                with contextlib.suppress(OSError):
                    replaced.rename(final)
            raise CheckpointError(f"checkpoint {final} can't be written: {error.strerror or error}") from error
        with contextlib.suppress(OSError):
            remove(replaced)
        kept = [other for other in self.steps() if other <= step][: self.keep]
        for other in set(self.steps()) - set(kept):
            # The new one is safe. If an old one can't be removed, the next save tries again.
            with contextlib.suppress(OSError):
                remove(self._set_aside(self.path(other)))
        return final

    def try_save(self, step: int, state: dict[str, Any]) -> bool:
        """Call :meth:`save`, but turn a failure into a warning. Return whether it succeeded.

        Raises:
            CheckpointError: at the third failure in a row, or if the folder is gone.
        """
        try:
            self.save(step, state)
        except FolderGoneError:
            raise
        except CheckpointError as error:
            self._failures += 1
            if self._failures > FAILURES_ALLOWED:
                raise CheckpointError(f"{error}; given up after {self._failures} failures in a row") from error
            logger.warning("%s; training continues, older checkpoints are intact", error)
            return False
        self._failures = 0
        return True

    def load_newest(self) -> tuple[int, dict[str, Any]] | None:
        """Return step and state (on the CPU) of the newest valid checkpoint; None if there are no checkpoints.

        Invalid ones are skipped with a warning that names them.

        Raises:
            CheckpointError: there are checkpoints, but none is valid.
        """
        if found := next(self.valid(), None):
            return found
        if self.steps():
            raise self.none_left()
        return None

    def valid(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield step and state of each checkpoint that can be read, newest first.

        Warnings name the others, and folders beside them with similar names, such as copies.
        """
        for path in sorted(self.folder.glob("step_*")):
            if not is_checkpoint(path):
                logger.warning("%s is not a checkpoint of this run and is ignored", printable(path, 400))
        for step in self.steps():
            try:
                yield step, read_checkpoint(self.path(step))
            except CheckpointError as error:
                logger.warning("%s; trying the one before", error)

    def none_left(self) -> CheckpointError:
        """Return the error for a folder that has checkpoints, but no valid one."""
        return CheckpointError(
            f"no valid checkpoint is left in {self.folder}; remove {self.folder.parent} to train it from the start"
        )

    def _set_aside(self, path: Path) -> Path:
        """Rename a checkpoint before its removal, so that a kill midway leaves no partial one under its name."""
        aside = path.with_name(f"{TEMPORARY}old_{path.name}")
        with contextlib.suppress(OSError):
            remove(aside)
        if path.exists():
            path.rename(aside)
        return aside


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Return the state in the checkpoint folder ``path`` after verifying its checksum.

    Unpickles only tensors and plain values.

    Raises:
        CheckpointError: a file is missing, damaged, or holds something else.
    """
    try:
        manifest = json.loads(read_regular(path / "manifest.json"))
        payload = read_regular(path / "state.pt", LARGEST)
        if len(payload) != manifest["bytes"]:
            raise CheckpointError(f"checkpoint {path} is refused: {len(payload)} bytes, not {manifest['bytes']}")
        if hashlib.sha256(payload).hexdigest() != manifest["sha256"]:
            raise CheckpointError(f"checkpoint {path} is refused: its SHA-256 is not the manifest's")
        state: dict[str, Any] = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except DamagedError as error:
        raise CheckpointError(f"checkpoint {path} is refused: {error}") from error
    # The file may hold anything. Whatever fails, the caller tries the previous checkpoint.
    except Exception as error:
        raise CheckpointError(
            f"checkpoint {path} is refused: {type(error).__name__}: {printable(error, 400)}"
        ) from error
    if not isinstance(state, dict):
        raise CheckpointError(f"checkpoint {path} is refused: it does not hold a dict")
    return state


def is_checkpoint(path: Path) -> bool:
    """Return whether ``path`` has the name of a checkpoint, valid or not; copies have other names."""
    return _named(path) is not None


def _named(path: Path) -> re.Match[str] | None:
    """Match the step in the name of a checkpoint; return None for anything else, such as a copy."""
    found = NAME.fullmatch(path.name)
    return found if found and path.name == f"step_{int(found[1]):09d}" else None
