"""Every family's kernels on the emulator: right, with the same bits, for any schedule and any device size."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from .build import Emulator
from .cases import STEMS, cases_of, run_shuffled

ALL = [pytest.param(stem, case, id=f"{stem}-{case}") for stem in STEMS for case in cases_of(stem)]


@pytest.mark.parametrize(("stem", "case"), ALL)
def test_right_and_the_same_bits_whatever_the_schedule(emulator: Emulator, stem: str, case: Any) -> None:
    in_order, shuffled = (run_shuffled(emulator, stem, case, seed=seed) for seed in (0, 1))
    if in_order is not None and shuffled is not None:
        torch.testing.assert_close(list(shuffled), list(in_order), rtol=0, atol=0, equal_nan=True)


SIZES = (1, 132)
"""Numbers of multiprocessors; the usual one lies between them."""


@pytest.mark.parametrize(("number", "stem", "case"), [pytest.param(i, *p.values, id=p.id) for i, p in enumerate(ALL)])
def test_right_whatever_the_size_of_the_device(emulator: Emulator, number: int, stem: str, case: Any) -> None:
    """Each case on a smaller or a larger device, in turn."""
    run_shuffled(emulator, stem, case, seed=2, multiprocessors=SIZES[number % len(SIZES)])


def test_case_names_are_unique() -> None:
    for stem in STEMS:
        names = [str(case) for case in cases_of(stem)]
        assert sorted(set(names)) == sorted(names), stem
