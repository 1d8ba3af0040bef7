"""Processor cores and memory that this process may use, as far as the operating system tells."""

from __future__ import annotations

import os


def cores() -> int:
    """Return the number of processor cores of this process; of the machine where there is no affinity, as on macOS."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory() -> int | None:
    """Return the machine's memory in bytes; None where the operating system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
