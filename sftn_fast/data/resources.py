"""Processor cores and memory that this process may use, as far as the operating system tells."""

from __future__ import annotations

import os

from sftn_fast.config import ConfigError
from sftn_fast.utils.format import readable_bytes


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


def require_memory(images: int, channels: int, size: int) -> None:
    """Raise :class:`ConfigError` if decoded images, a byte for each value, take more than the machine's memory."""
    needed, there = images * channels * size**2, memory()
    if there is not None and needed > there:
        raise ConfigError(
            f"{images:,} images of {channels} x {size} x {size} take {readable_bytes(needed)} of memory, and this "
            f"machine has {readable_bytes(there)}; lower data.train_size, data.val_size or data.image_size"
        )
