"""Negatives under pytest-benchmark: `python -m pytest bench`."""

from __future__ import annotations

import pytest

from bench.cases.negatives import BATCH, CASES, NEGATIVES
from bench.measure import synchronize
from bench.suite import DEVICES
from sftn_fast import ops


@pytest.mark.parametrize("implementation", ["eager", "reference", "ours", "ours, int32"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("device", DEVICES)
def test_sampling(benchmark, device, case, implementation):
    benchmark.group = f"{case.name} on {device}"
    step = case.steps(device)[implementation]
    with ops.backend("fused"):
        negatives = step()
        assert negatives.shape == (BATCH, NEGATIVES)
        assert (negatives.sort(dim=1).values.diff(dim=1) > 0).all()

        def run():
            step()
            synchronize(device)

        benchmark(run)
