"""The level of vector instructions of the CPU kernels: the machine's highest, or that of ``SFTN_CPU_CAPABILITY``.

The environment variable is read once, when the library loads. Its words are those of PyTorch's ``ATEN_CPU_CAPABILITY``.
"""

from __future__ import annotations

import os
import warnings

import torch

from sftn_fast.ops import _library

VARIABLE = "SFTN_CPU_CAPABILITY"
LEVELS = ("default", "avx2", "avx512")
"""All levels, in ascending order."""


def _has_ops() -> bool:
    return all(_library.has(op) for op in ("cpu_level", "highest_cpu_level", "set_cpu_level"))


def available() -> tuple[str, ...]:
    """Return the levels that machine and library have, in ascending order. There is none without the library."""
    return LEVELS[: torch.ops.sftn_fast.highest_cpu_level() + 1] if _has_ops() else ()


def current() -> str | None:
    """Return the level in use, or None without the library."""
    return LEVELS[torch.ops.sftn_fast.cpu_level()] if _has_ops() else None


def use(level: str) -> None:
    """Change the level in this process. Only for tests, and only while no kernel runs."""
    torch.ops.sftn_fast.set_cpu_level(LEVELS.index(level))


def choose() -> None:
    """Use the level of ``SFTN_CPU_CAPABILITY``. A level that can't be used leaves the highest, with a warning."""
    wanted = os.environ.get(VARIABLE, "")
    levels = available()
    if wanted in levels:
        use(wanted)
    elif wanted and levels:
        known = f"{', '.join(levels)} on this machine"
        warnings.warn(f"{VARIABLE} must be one of {known}, got {wanted!r}; the kernels use {current()}", stacklevel=2)
