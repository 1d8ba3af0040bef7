"""The folder that a run writes to: resolved once, writable, and locked."""

from __future__ import annotations

import contextlib
import logging
import os
import platform
from pathlib import Path
from types import TracebackType
from typing import IO

from sftn_fast.config import ConfigError
from sftn_fast.engine import distributed
from sftn_fast.utils import run_files
from sftn_fast.utils.atomic import NO_LINK, open_lock
from sftn_fast.utils.file_lock import try_lock
from sftn_fast.utils.text import printable

logger = logging.getLogger(__name__)


class FolderError(ConfigError):
    """An output folder can't be used."""


class RunFolder:
    """Context that creates ``path``, locks it, removes what killed runs left in it, and returns the resolved path.

    ``path`` itself may be a link. Links inside the folder are never written through.

    The lock is one of the system on ``.lock``, see :mod:`sftn_fast.utils.file_lock`: it ends with the process. Over
    several ranks the main one holds it. Where files can't be locked, a warning says so.

    Raises:
        ConfigError: on entry, if the folder can't be written to, another run holds it, or there is a link in it.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path).expanduser().resolve()
        self._lock: IO[str] | None = None

    def __enter__(self) -> Path:
        return distributed.on_main(self._take)

    def check_free(self) -> None:
        """Raise :class:`FolderError` if a run holds the folder. Writes nothing."""
        with contextlib.suppress(OSError):
            descriptor = os.open(self.path / ".lock", os.O_RDONLY | NO_LINK)
            with os.fdopen(descriptor, encoding="utf-8", errors="replace") as lock:
                self._lock_or_refuse(lock, shared=True)

    def _lock_or_refuse(self, lock: IO[str], *, shared: bool = False) -> None:
        try:
            try_lock(lock.fileno(), shared=shared)
        except BlockingIOError:
            lock.seek(0)
            holder = printable(lock.read().strip()) or "unknown"
            lock.close()
            raise FolderError(f"the folder {self.path} is in use by another run (process {holder})") from None
        except OSError as error:
            logger.warning(
                "%s can't be locked (%s): make sure that only one run uses it", self.path, error.strerror or error
            )

    def _take(self) -> Path:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            run_files.refuse_links(self.path)
            self._lock = open_lock(self.path / ".lock")
        except OSError as error:
            raise FolderError(f"the output folder {self.path} can't be written to: {error.strerror}") from error
        self._lock_or_refuse(self._lock)
        self._sign(self._lock)
        try:
            run_files.remove_leftovers(self.path)
        except OSError as error:
            logger.warning("leftovers of a killed run in %s can't be removed (%s)", self.path, error.strerror)
        return self.path

    def _sign(self, lock: IO[str]) -> None:
        """Write the process that holds the lock into its file, unless it has other hard links or the disk is full."""
        if os.fstat(lock.fileno()).st_nlink == 1:
            with contextlib.suppress(OSError):
                os.ftruncate(lock.fileno(), 0)
                os.lseek(lock.fileno(), 0, os.SEEK_SET)
                os.write(lock.fileno(), f"{os.getpid()} on {platform.node()}\n".encode())

    def fileno(self) -> int:
        """Return the lock's file descriptor. A process that inherits it holds the folder too, as long as it lives."""
        assert self._lock is not None, "fileno() is for inside the context"
        return self._lock.fileno()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # The file stays: if it were removed, a third run could lock a new one while a second waits for the old.
        if self._lock is not None:
            self._lock.close()
