"""Progress of a long task: a bar on a terminal, lines elsewhere, and the time that remains in words."""

from __future__ import annotations

import os
import shutil
import sys
import threading
import time
from types import TracebackType
from typing import TYPE_CHECKING, TextIO

from sftn_fast.utils import launcher
from sftn_fast.utils.text import escape

if TYPE_CHECKING:
    from tqdm import tqdm

CLEAR = "\r\x1b[K"
"""Escape code that erases the terminal's current line."""
INTERVAL = 0.1
"""Seconds between redraws of a bar."""
LINE_INTERVAL = 3.0
"""Seconds between the plain lines of a task that is usually short."""


class ProgressBar:
    """Progress of a task with a known number of steps.

    On a terminal tqdm redraws one line. Elsewhere, and on a terminal without escape codes (``TERM=dumb``), plain lines
    are printed if ``line_interval`` asks for them. Of several ranks only the first shows anything.

    Args:
        total: Number of steps.
        start: Steps done before the construction. None: the first :meth:`update` tells, so that the time before it does
            not count towards the rate.
        label: What is being done, as in "reading images". :meth:`update` may change it.
        unit: What a step is, in the plural.
        line_interval: Seconds between plain lines. A bar appears after the same time, so that a short task shows
            nothing. None: a bar at once, and no lines.
        stream: Where to write; standard error by default.
    """

    def __init__(
        self,
        total: int,
        *,
        start: int | None = 0,
        label: str = "",
        unit: str = "steps",
        line_interval: float | None = None,
        stream: TextIO | None = None,
    ) -> None:
        self._total, self._label, self._unit = total, escape(label), unit
        self._stream = sys.stderr if stream is None else stream
        self._line_interval = line_interval
        self._printed = time.monotonic()
        self._first = None if start is None else (self._printed, start)  # when, and how many steps were done
        main = launcher.rank() == 0
        self.active = main and self._stream.isatty() and os.environ.get("TERM") != "dumb"
        """Whether a bar is drawn."""
        self._prints_lines = main and not self.active and line_interval is not None
        self._bar: tqdm | None = None

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def update(self, done: int, label: str | None = None) -> None:
        """Show that ``done`` steps are done, and ``label`` from now on."""
        self._label = self._label if label is None else escape(label)
        if self._first is None:
            self._first = time.monotonic(), done
        if self.active:
            try:
                self._draw(done, self._first[1])
            except OSError:  # the terminal is gone; the task is not
                self.close()
                self.active = False
        elif self._prints_lines:
            self._print(done)

    def eta(self, done: int) -> float | None:
        """Return the seconds that remain after ``done`` steps; None before the first step."""
        began, first = self._first or (0.0, done)
        return (time.monotonic() - began) * (self._total - done) / (done - first) if done > first else None

    def clear(self) -> None:
        """Erase the bar to make room for a line of text; the next :meth:`update` draws it below."""
        if self._bar is not None:
            self._bar.clear()

    def close(self) -> None:
        """Erase the bar for good."""
        if self._bar is not None:
            bar, self._bar = self._bar, None
            try:
                bar.close()
            except OSError:  # nothing is left to erase
                self.active = False

    def _draw(self, done: int, first: int) -> None:
        if self._bar is None:
            self._bar = _open_bar(self._total, first, self._unit, self._line_interval or INTERVAL, self._stream)
        self._bar.set_description(self._label, refresh=False)
        self._bar.update(done - self._bar.n)

    def _print(self, done: int) -> None:
        now, seconds = time.monotonic(), self.eta(done)
        if seconds is None or now - self._printed < (self._line_interval or 0.0):
            return
        self._printed = now
        left = f", {duration(seconds)} left" if done < self._total else ""
        print(f"{self._label}: {done:,} of {self._total:,} {self._unit}{left}", file=self._stream, flush=True)


def _open_bar(total: int, start: int, unit: str, delay: float, stream: TextIO) -> tqdm:
    """Return a tqdm bar that starts neither a thread nor a process of its own."""
    from tqdm import tqdm

    class Bar(tqdm):
        monitor_interval = 0  # tqdm's thread would redraw a bar that is not updated for ten seconds

    Bar.set_lock(threading.RLock())  # tqdm's own is shared between processes
    return Bar(
        total=total,
        initial=start,
        unit=f" {unit}",
        file=stream,
        delay=delay,
        mininterval=INTERVAL,
        miniters=1,
        smoothing=0,  # the mean rate since the start, as in eta()
        leave=False,
        position=0,
        dynamic_ncols=True,
    )


def fold(text: str, indent: int, *, width: int | None = None) -> str:
    """Break a line between its items, which are separated by two spaces, to fit the terminal.

    Args:
        text: The line.
        indent: Spaces in front of each continuation line.
        width: Columns; by default the terminal's, or 80 without one.
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
    """Return a time in words, no more precise than an estimate can be: ``about 12 min``."""
    minutes = round(seconds / 60)
    if seconds < 99.5:
        return f"about {max(1, round(seconds))} s"
    if minutes < 100:
        return f"about {minutes} min"
    hours = round(seconds / 3600)
    return f"about {minutes // 60} h {minutes % 60} min" if hours < 10 else f"about {hours} h"
