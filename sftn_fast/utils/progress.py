"""How far a run is and when it will be done: a line on the terminal, and the words for it in others."""

from __future__ import annotations

import os
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
        self.active = self._stream.isatty() and os.environ.get("TERM") != "dumb"

    def update(self, done: int, label: str) -> None:
        """Show ``label`` and that ``done`` steps of the run are done."""
        now = time.monotonic()
        if self.active and now - self._drawn >= INTERVAL:
            self._drawn = now
            self._write(CLEAR + self._line(done, label))

    def left(self, done: int) -> float | None:
        """Seconds until the run is done, ``done`` of its steps being so; None before the first one of this start."""
        gone = done - self._start
        return (time.monotonic() - self._began) * (self._total - done) / gone if gone > 0 else None

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

    def _line(self, done: int, label: str) -> str:
        rate = (done - self._start) / max(time.monotonic() - self._began, 1e-9)
        seconds = self.left(done)
        left = "?" if seconds is None else _clock(seconds)
        text = f" {label}  step {done}/{self._total}  {rate:.1f} steps/s  {left} left"
        columns = shutil.get_terminal_size().columns
        width = max(0, min(30, columns - len(text) - 3))
        filled = round(width * done / max(1, self._total))
        return f"[{'=' * filled}{' ' * (width - filled)}]{text}"[: columns - 1]


def fold(text: str, indent: int, *, width: int | None = None) -> str:
    """Break a line of items, which two spaces part, where it would pass the terminal's width.

    Args:
        text: The line.
        indent: Spaces before what is continued.
        width: Columns; those of the terminal if not given, 80 where there is none.
    """
    width = shutil.get_terminal_size((80, 24)).columns if width is None else width
    lines: list[str] = []
    for item in text.split("  "):
        if lines and len(lines[-1]) + 2 + len(item) <= width:
            lines[-1] += f"  {item}"
        else:
            lines.append(" " * indent + item if lines else item)
    return "\n".join(lines)


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
