"""Whole steps of training under pytest-benchmark: `python -m pytest bench/test_training.py`."""

from __future__ import annotations

import pytest

from bench.training.cases import CASES
from bench.training.worker import training


@pytest.mark.parametrize("implementation", ["eager", "ours"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_step(benchmark, case, implementation):
    """In one process, where ours has set the allocator for both: `python -m bench training` keeps them apart."""
    benchmark.group = case.name
    batches, step = training(case, implementation)
    benchmark.pedantic(lambda: step(next(batches)), rounds=3, warmup_rounds=1)
