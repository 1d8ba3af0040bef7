"""Lines that a data set has for the user: each once, by one process of a run."""

from __future__ import annotations

import sys
from typing import TextIO

from sftn_fast.utils import launcher

_said: set[str] = set()
_muted = False


def say(line: str, stream: TextIO | None = None) -> None:
    """Print ``line``, to standard error unless told otherwise, if no process of this run has."""
    if not _muted and launcher.rank() == 0 and line not in _said:
        _said.add(line)
        print(line, file=stream or sys.stderr, flush=True)


def mute() -> None:
    """Leave it to the process that started this one to say what there is to say."""
    global _muted
    _muted = True
