"""What this process may use of the machine, as far as its system says."""

from __future__ import annotations

import os


def cores() -> int:
    """Processor cores of this process; those of the machine where the system, as macOS, knows no others."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory() -> int | None:
    """Bytes of memory that the machine has; None where its system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
