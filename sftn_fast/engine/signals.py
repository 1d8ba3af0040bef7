"""SIGTERM, SIGINT and SIGUSR1: the first asks the loop to stop, the second ends the process.

SIGUSR1 is what SLURM is told to send some time before the end. It may come twice, from SLURM to everyone and from
torchrun to its children, so that it never is a second signal.
"""

from __future__ import annotations

import os
import signal
import threading
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Any

from sftn_fast.utils.progress import CLEAR

# Not every system has SIGUSR1.
NAMES = ("SIGTERM", "SIGINT", "SIGUSR1")
SIGNALS = tuple(getattr(signal, name) for name in NAMES if hasattr(signal, name))


class Interrupted(Exception):
    """Training stopped at a signal, its checkpoint is safe. ``signum`` is the signal; a shell expects 128 + signum."""

    def __init__(self, signum: int):
        super().__init__(f"stopped by {signal.Signals(signum).name}; the checkpoint is written")
        self.signum = signum


class StopSignals:
    """Context in which a first signal only sets :attr:`signum`, and a second SIGTERM or SIGINT exits at once.

    Outside the main thread Python can't install handlers; there it does nothing. The former handlers come back at exit.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self._former: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            self._former = {number: signal.signal(number, self._handle) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        # os.write, since print is not allowed to re-enter itself and a handler may well land inside one.
        if self.signum is not None and signum not in (signal.SIGTERM, signal.SIGINT):
            return
        if self.signum is not None:
            _say("second signal: exiting now")
            os._exit(128 + signum)
        self.signum = signum
        _say(f"{signal.Signals(signum).name}: stopping after this step; once more to exit now")


def _say(line: str) -> None:
    with suppress(OSError):  # nobody reads it any more; an exception here would end the step
        # On a terminal the bar stands in this line, and behind it the ^C.
        os.write(2, f"{CLEAR if os.isatty(2) else ''}{line}\n".encode())
