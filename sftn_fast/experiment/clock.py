"""Seconds that a job has trained, over all its starts."""

from __future__ import annotations

import logging
import math
import time
from pathlib import Path
from types import TracebackType

from sftn_fast.engine import distributed
from sftn_fast.utils.atomic import write_atomically
from sftn_fast.utils.checksummed import DamagedError, read_regular, read_sealed, seal

logger = logging.getLogger(__name__)

SECONDS = "seconds"
"""File in a job's folder with the seconds that it has trained, whether it is finished or was stopped."""


class Clock:
    """Context that counts the seconds spent in it, on top of those of earlier starts, which ``path`` holds.

    Seconds of a start that was killed are not counted.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.seconds = path, read_seconds(path)

    def __enter__(self) -> Clock:
        self._started = time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.seconds += time.perf_counter() - self._started
        if not distributed.is_main():
            return
        try:
            write_atomically(self.path, seal({"seconds": round(self.seconds, 3)}))
        except OSError as failure:
            if error is None:  # otherwise that error is what the user has to see
                logger.warning("%s can't be written: %s; training continues", self.path, failure.strerror)


def read_seconds(path: Path) -> float:
    """Return the seconds that ``path`` says a job has trained; 0 if the file is missing or damaged."""
    if not path.exists():
        return 0.0
    try:
        try:
            seconds = float(read_sealed(path)["seconds"])
        except DamagedError:
            seconds = float(read_regular(path))  # as older versions wrote it
        if math.isfinite(seconds) and seconds >= 0:
            return seconds
    except (DamagedError, ValueError, KeyError, TypeError):
        pass
    logger.warning("%s is damaged: seconds of earlier starts are not counted", path)
    return 0.0
