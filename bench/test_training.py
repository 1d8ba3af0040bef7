"""Whole steps of training under pytest-benchmark: `python -m pytest bench/test_training.py`."""

from __future__ import annotations

import pytest

from bench.measure import synchronize
from bench.suite import DEVICES
from bench.training.cases import CASES
from bench.training.worker import training


@pytest.mark.parametrize("implementation", ["eager", "ours"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("device", DEVICES)
def test_step(benchmark, device, case, implementation):
    """Both run in one process, where ours sets the allocator for both; `python -m bench training` separates them."""
    benchmark.group = f"{case.name} on {device}"
    batches, step = training(case, implementation, device)

    def run():
        step(next(batches))
        synchronize(device)

    benchmark.pedantic(run, rounds=3, warmup_rounds=1)
