"""Standard output and standard error that outlive their readers: a run goes on when nobody can read it any more."""

from __future__ import annotations

import errno
import io
import os
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

NAMES = {1: "standard output", 2: "standard error"}


class Lasting:
    """What has become of a program's two streams."""

    def __init__(self) -> None:
        self.tell_of_readers = False
        """Say also of a reader that has left, which is no fault of a short output: ``| head -1``."""
        self.lost: dict[int, OSError] = {}
        """Why a stream, by its file descriptor, is written to no more."""

    @property
    def failed(self) -> bool:
        """Whether output that somebody waits for has not reached them."""
        return 1 in self.lost and self.lost[1].errno != errno.EPIPE

    def give_up(self, descriptor: int, error: OSError) -> None:
        """Drop all that is still written to ``descriptor``, by whatever code or child, and say so on the other one."""
        self.lost[descriptor] = error
        with suppress(OSError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, descriptor)
            os.close(nowhere)
        if error.errno != errno.EPIPE or self.tell_of_readers:
            line = f"{NAMES[descriptor]} can't be written to ({error.strerror}): going on without it\n"
            with suppress(OSError):
                os.write(3 - descriptor, line.encode())


class _LastingFile(io.FileIO):
    """A standard stream's file, whose writes never fail."""

    def __init__(self, descriptor: int, lasting: Lasting) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self._lasting = lasting

    def write(self, data: bytes) -> int:  # type: ignore[override]
        """Write ``data``, or drop it where that can't be done."""
        while self.fileno() not in self._lasting.lost:
            try:
                written = super().write(data)
            except OSError as error:
                self._lasting.give_up(self.fileno(), error)
            else:
                if written is not None:
                    return written
                select.select([], [self], [])  # somebody has made it non-blocking, and it is full
        return len(data)


@contextmanager
def lasting() -> Iterator[Lasting]:
    """Context in which writing to ``sys.stdout`` and ``sys.stderr`` never fails, whatever becomes of them.

    Neither a reader that leaves, nor a full disk, nor a letter that the encoding has not raises an exception.

    A stream that was closed from the start is opened to nowhere, since the next file would take its place and receive
    its text. Streams that somebody else has replaced are left as they are.
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


def _open_missing() -> None:
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            opened = os.open(os.devnull, os.O_RDONLY if descriptor == 0 else os.O_WRONLY)  # the lowest that is free
            os.set_inheritable(opened, True)


def _stream(descriptor: int, former: TextIO | None, state: Lasting) -> TextIO:
    if former is not None:
        with suppress(OSError):
            former.flush()
    file = io.BufferedWriter(_LastingFile(descriptor, state))  # type: ignore[type-var]
    encoding = former.encoding if former is not None else "utf-8"
    # Lines at once, since a log is read while it grows; and a name that this encoding has not costs no run.
    return io.TextIOWrapper(file, encoding=encoding, errors="backslashreplace", line_buffering=True)
