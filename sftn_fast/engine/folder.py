"""The folder that a run writes to: resolved once, writable, and ours alone."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
from pathlib import Path
from types import TracebackType
from typing import IO

from sftn_fast.config import ConfigError
from sftn_fast.engine import distributed
from sftn_fast.utils import run_files
from sftn_fast.utils.atomic import NO_LINK, open_lock
from sftn_fast.utils.text import printable

logger = logging.getLogger(__name__)


class FolderError(ConfigError):
    """An output folder that can't be used."""


class RunFolder:
    """Context that makes ``path``, locks it, frees it of what killed runs left there, and gives it back resolved.

    ``path`` itself may be a link; in the folder none is written through.

    The lock is the kernel's (``flock`` on ``.lock``): it ends with the process, however that ends. Of several ranks the
    main one holds it.

    Raises:
        ConfigError: on entry, if the folder can't be written to, another run holds it, or a link lies in it.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path).expanduser().resolve()
        self._lock: IO[str] | None = None

    def __enter__(self) -> Path:
        return distributed.on_main(self._take)

    def check_free(self) -> None:
        """Raise :class:`FolderError` if a run holds the folder; writes nothing."""
        with contextlib.suppress(OSError):
            descriptor = os.open(self.path / ".lock", os.O_RDONLY | NO_LINK)
            with os.fdopen(descriptor, errors="replace") as lock:
                self._lock_or_refuse(lock, fcntl.LOCK_SH)

    def _lock_or_refuse(self, lock: IO[str], kind: int) -> None:
        try:
            fcntl.flock(lock, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            holder = printable(lock.read().strip()) or "unknown"
            lock.close()
            raise FolderError(f"the folder {self.path} is in use by another run (process {holder})") from None
        except OSError as error:
            logger.warning("%s can't be locked (%s): see to it that only one run uses it", self.path, error.strerror)

    def _take(self) -> Path:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            run_files.refuse_links(self.path)
            self._lock = open_lock(self.path / ".lock")
        except OSError as error:
            raise FolderError(f"the output folder {self.path} can't be written to: {error.strerror}") from error
        self._lock_or_refuse(self._lock, fcntl.LOCK_EX)
        self._sign(self._lock)
        try:
            run_files.remove_leftovers(self.path)
        except OSError as error:
            logger.warning("what a killed run left in %s can't be removed (%s)", self.path, error.strerror)
        return self.path

    def _sign(self, lock: IO[str]) -> None:
        """Say in the lock's file who holds it; on a full disk, or where it bears a second name elsewhere, nobody."""
        if os.fstat(lock.fileno()).st_nlink == 1:
            with contextlib.suppress(OSError):
                os.ftruncate(lock.fileno(), 0)
                os.pwrite(lock.fileno(), f"{os.getpid()} on {os.uname().nodename}\n".encode(), 0)

    def fileno(self) -> int:
        """The lock's file descriptor: a process that inherits it holds the folder too, for as long as it lives."""
        assert self._lock is not None, "fileno() is for inside the context"
        return self._lock.fileno()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # The file stays: removing it would let a third run lock a new one beside a second that waits for the old.
        if self._lock is not None:
            self._lock.close()
