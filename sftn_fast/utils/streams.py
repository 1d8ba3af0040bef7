"""Standard output and standard error that never fail: a run continues when its output can't be written any more."""

from __future__ import annotations

import errno
import io
import os
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from typing import TextIO

NAMES = {1: "standard output", 2: "standard error"}


class Lasting:
    """State of a program's two output streams."""

    def __init__(self) -> None:
        self.tell_of_readers = False
        """Report a closed pipe as well. For short output this is normal: ``| head -1``."""
        self.lost: dict[int, OSError] = {}
        """Errors that ended writing to a stream, by its file descriptor."""

    @property
    def failed(self) -> bool:
        """Output was lost that a reader is waiting for."""
        return 1 in self.lost and self.lost[1].errno != errno.EPIPE

    def give_up(self, descriptor: int, error: OSError) -> None:
        """Discard all further output to ``descriptor``, also of child processes, and report it on the other stream."""
        self.lost[descriptor] = error
        with suppress(OSError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, descriptor)
            os.close(nowhere)
        if error.errno != errno.EPIPE or self.tell_of_readers:
            line = f"{NAMES[descriptor]} can't be written to ({error.strerror}): continuing without it\n"
            with suppress(OSError):
                os.write(3 - descriptor, line.encode())


class _LastingFile(io.FileIO):
    """File of a standard stream that never fails to write."""

    def __init__(self, descriptor: int, lasting: Lasting) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self._lasting = lasting

    def write(self, data: bytes) -> int:  # type: ignore[override]
        """Write ``data``, or discard it if it can't be written."""
        while self.fileno() not in self._lasting.lost:
            try:
                written = super().write(data)
            except OSError as error:
                self._lasting.give_up(self.fileno(), error)
            else:
                if written is not None:
                    return written
                select.select([], [self], [])  # another process has made it non-blocking, and it is full
        return len(data)


@contextmanager
def lasting() -> Iterator[Lasting]:
    """Return a context in which writing to ``sys.stdout`` and ``sys.stderr`` never fails.

    A closed pipe, a full disk or a character that the encoding lacks raises no exception.

    A stream that was closed at the start is connected to the null device. Otherwise the next file to be opened would
    get its descriptor and receive its text. Streams that other code has replaced stay unchanged.
    """
    state = Lasting()
    _open_missing()
    before = sys.stdout, sys.stderr
    if before[0] is sys.__stdout__:
        sys.stdout = _stream(1, before[0], state)
    if before[1] is sys.__stderr__:
        sys.stderr = _stream(2, before[1], state)
    try:
        yield state
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = before


@contextmanager
def silent_output() -> Iterator[None]:
    """Return a context in which standard output is discarded, also what compiled libraries write to it."""
    sys.stdout.flush()
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)


def _open_missing() -> None:
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            opened = os.open(os.devnull, os.O_RDONLY if descriptor == 0 else os.O_WRONLY)  # the lowest free one
            os.set_inheritable(opened, True)


def _stream(descriptor: int, former: TextIO | None, state: Lasting) -> TextIO:
    if former is not None:
        with suppress(OSError):
            former.flush()
    if sys.platform == "win32" and isinstance(former, io.TextIOWrapper) and former.isatty():
        # Only Python's own stream writes all characters to a console, whose code page may be another encoding.
        former.reconfigure(errors="backslashreplace", line_buffering=True)
        return former
    file = io.BufferedWriter(_LastingFile(descriptor, state))  # type: ignore[type-var]
    encoding = former.encoding if former is not None else "utf-8"
    # Line by line, since a log is read while it grows. A character that the encoding lacks is escaped.
    return io.TextIOWrapper(file, encoding=encoding, errors="backslashreplace", line_buffering=True)
