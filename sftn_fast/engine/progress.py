"""A line on the terminal that says how far the run is and when it will be done."""

from __future__ import annotations

import shutil
import sys
import time
from typing import TextIO

CLEAR = "\r\x1b[K"
INTERVAL = 0.1  # seconds between redraws


class ProgressBar:
    """Redraws one line on ``stream``, and draws nothing where ``stream`` is no terminal.

    Args:
        total: steps of the whole run.
        start: steps done already; the rate counts from there.
    """

    def __init__(self, total: int, *, start: int = 0, stream: TextIO | None = None):
        self._stream = sys.stderr if stream is None else stream
        self._total, self._start = total, start
        self._began = self._drawn = time.monotonic()
        self.active = self._stream.isatty()

    def update(self, done: int, label: str) -> None:
        """Show ``label`` and that ``done`` steps of the run are done."""
        now = time.monotonic()
        if self.active and now - self._drawn >= INTERVAL:
            self._drawn = now
            self._write(CLEAR + self._line(done, label, now - self._began))

    def clear(self) -> None:
        """Make room for a line of text."""
        if self.active:
            self._write(CLEAR)

    def _write(self, text: str) -> None:
        try:
            self._stream.write(text)
            self._stream.flush()
        except OSError:  # the terminal is gone; the run is not
            self.active = False

    def _line(self, done: int, label: str, seconds: float) -> str:
        rate = (done - self._start) / max(seconds, 1e-9)
        left = _clock((self._total - done) / rate) if rate > 0 else "?"
        text = f" {label}  step {done}/{self._total}  {rate:.1f} steps/s  {left} left"
        columns = shutil.get_terminal_size().columns
        width = max(0, min(30, columns - len(text) - 3))
        filled = round(width * done / max(1, self._total))
        return f"[{'=' * filled}{' ' * (width - filled)}]{text}"[: columns - 1]


def duration(seconds: float) -> str:
    """A time in words that claim no more than an estimate can: ``about 12 min``."""
    minutes = round(seconds / 60)
    if seconds < 99.5:
        return f"about {max(1, round(seconds))} s"
    if minutes < 100:
        return f"about {minutes} min"
    hours = round(seconds / 3600)
    return f"about {minutes // 60} h {minutes % 60} min" if hours < 10 else f"about {hours} h"


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"
