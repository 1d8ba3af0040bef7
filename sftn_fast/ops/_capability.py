"""The level of vector instructions of the CPU kernels: the highest there is, or that of ``SFTN_CPU_CAPABILITY``.

The environment variable is read once, when the library loads. Its words are those of PyTorch's ``ATEN_CPU_CAPABILITY``.
A library that was built for one machine has the level of that machine alone.
"""

from __future__ import annotations

import os
import warnings

import torch

from sftn_fast.ops import _library

VARIABLE = "SFTN_CPU_CAPABILITY"
LEVELS = ("default", "avx2", "avx512")
"""All levels, in ascending order."""
REBUILD = "`SFTN_CPU_LEVELS=all pip install --no-build-isolation -e .` in the source tree builds all levels"


def _has_ops() -> bool:
    return all(_library.has(op) for op in ("cpu_level", "cpu_levels", "machine_cpu_level", "set_cpu_level"))


def available() -> tuple[str, ...]:
    """Return the levels that machine and library have, in ascending order. There is none without the library."""
    usable = torch.ops.sftn_fast.cpu_levels() if _has_ops() else 0
    return tuple(level for number, level in enumerate(LEVELS) if usable >> number & 1)


def of_machine() -> tuple[str, ...]:
    """Return the levels that the machine has, in ascending order. There is none without the library."""
    return LEVELS[: torch.ops.sftn_fast.machine_cpu_level() + 1] if _has_ops() else ()


def current() -> str | None:
    """Return the level in use, or None without the library."""
    return LEVELS[torch.ops.sftn_fast.cpu_level()] if _has_ops() else None


def use(level: str) -> None:
    """Change the level in this process. Only for tests, and only while no kernel runs."""
    torch.ops.sftn_fast.set_cpu_level(LEVELS.index(level))


def choose() -> None:
    """Use the level of ``SFTN_CPU_CAPABILITY``. A level that can't be used leaves the highest, with a warning.

    A library without any level of this machine is given up.
    """
    wanted = os.environ.get(VARIABLE, "")
    levels = available()
    if not levels and _has_ops():
        _library.CPU.error = f"it was built for a processor with more vector instructions than this one; {REBUILD}"
    elif wanted in levels:
        use(wanted)
    elif wanted and levels:
        known = f"{', '.join(levels)} on this machine"
        rebuild = f"; {REBUILD}" if wanted in of_machine() else ""
        warnings.warn(
            f"{VARIABLE} must be one of {known}, got {wanted!r}; the kernels use {current()}{rebuild}", stacklevel=2
        )
