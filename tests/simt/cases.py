"""The cases of every family on the emulated device, found by file name.

A module ``<stem>_cases.py`` in this folder has ``CASES``, small cases with a readable ``str()``, and a function
``run_case(case)``. It runs the raw ops ``torch.ops.sftn_fast_emulated.*`` forward and backward and raises
AssertionError where they differ from float64. The tensors it returns must not depend on the order in which blocks,
warps and lanes run; None skips that comparison.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from .build import Emulator

SUFFIX = "_cases.py"
STEMS = tuple(sorted(path.name.removesuffix(SUFFIX) for path in Path(__file__).parent.glob(f"*{SUFFIX}")))


def cases_of(stem: str) -> Sequence[Any]:
    """Return the cases of a family."""
    return importlib.import_module(f"{__package__}.{stem}_cases").CASES


def run_shuffled(
    emulator: Emulator, stem: str, case: Any, *, seed: int, multiprocessors: int | None = None
) -> Sequence[Tensor] | None:
    """Run one case under one schedule, on a device of the emulator's default size or of another.

    Raises:
        AssertionError: if the kernels differ from float64; the message names the schedule.
    """
    emulator.reset()
    emulator.set_seed(seed)
    if multiprocessors is not None:
        emulator.set_multiprocessors(multiprocessors)
    try:
        return importlib.import_module(f"{__package__}.{stem}_cases").run_case(case)
    except AssertionError as error:
        device = "" if multiprocessors is None else f", {multiprocessors} multiprocessors"
        raise AssertionError(f"{stem}, {case}, seed {seed}{device}: {error}") from error
