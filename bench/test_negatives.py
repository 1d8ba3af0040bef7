"""Negatives under pytest-benchmark: `python -m pytest bench`."""

from __future__ import annotations

import pytest
import torch

from bench.cases.negatives import BATCH, CASES, NEGATIVES
from sftn_fast import ops

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]


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
        synchronize = torch.cuda.synchronize if device == "cuda" else lambda: None

        def run():
            step()
            synchronize()

        benchmark(run)
