"""Notices about a data set for the user: each is printed once, by one process of a run."""

from __future__ import annotations

import sys
from typing import TextIO

from sftn_fast.utils import launcher

_printed: set[str] = set()
_muted = False


def print_once(line: str, stream: TextIO | None = None) -> None:
    """Print ``line`` on rank 0, unless this process has printed it before.

    Args:
        line: The notice.
        stream: Where it goes; standard error if None.
    """
    if not _muted and launcher.rank() == 0 and line not in _printed:
        _printed.add(line)
        print(line, file=stream or sys.stderr, flush=True)


def mute() -> None:
    """Print no more notices in this process, because the process that started it has printed them."""
    global _muted
    _muted = True
