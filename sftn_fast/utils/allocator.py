"""Settings of the C library's allocator. They hold for the whole process, so only a program may change them."""

from __future__ import annotations

import ctypes

# Parameters of glibc's mallopt.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


def keep_freed_memory() -> None:
    """Let this process reuse the memory that a step frees for the next step, instead of returning it to the kernel.

    A fresh page costs a fault and a fill with zeros, at every step for every large map. Only glibc has the setting:
    with another C library this does nothing.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(M_MMAP_MAX, 0)
    mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
