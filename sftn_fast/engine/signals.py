"""Signal handling for SIGTERM, SIGINT and SIGUSR1: the first one asks the loop to stop, a second ends the process.

SLURM sends SIGUSR1 some time before its limit, if so configured. It may arrive twice, from SLURM to all processes and
from torchrun to its children. It therefore never counts as a second signal.
"""

from __future__ import annotations

import os
import signal
import threading
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Any

from sftn_fast.utils.progress import CLEAR

# Windows has no SIGUSR1.
NAMES = ("SIGTERM", "SIGINT", "SIGUSR1")
SIGNALS = tuple(getattr(signal, name) for name in NAMES if hasattr(signal, name))


class Interrupted(Exception):
    """Training stopped by signal ``signum`` after its checkpoint was saved. A shell expects exit code 128 + signum."""

    def __init__(self, signum: int):
        super().__init__(f"stopped by {signal.Signals(signum).name}, checkpoint saved")
        self.signum = signum


class StopSignals:
    """Context in which the first signal only sets :attr:`signum` and a second SIGTERM or SIGINT exits immediately.

    Outside the main thread it does nothing, because Python can't install handlers there. It restores the previous
    handlers at exit.
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
        # os.write, because print is not reentrant and a handler may interrupt one.
        if self.signum is not None and signum not in (signal.SIGTERM, signal.SIGINT):
            return
        if self.signum is not None:
            _say("second signal: exiting now")
            os._exit(128 + signum)
        self.signum = signum
        _say(f"{signal.Signals(signum).name}: stopping after this step; send it again to exit now")


def _say(line: str) -> None:
    with suppress(OSError):  # a closed stream; an exception here would end the step
        # On a terminal this line already shows the progress bar and ^C.
        os.write(2, f"{CLEAR if os.isatty(2) else ''}{line}\n".encode())
