"""Contrastive distillation under pytest-benchmark: `python -m pytest bench`."""

from __future__ import annotations

import pytest
import torch

from bench.cases.contrastive import CASES
from sftn_fast import ops

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]


@pytest.mark.parametrize("implementation", ["eager", "reference", "ours"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("device", DEVICES)
def test_forward_and_backward(benchmark, device, case, implementation):
    benchmark.group = f"{case.name} on {device}"
    steps = case.steps(device)
    with ops.backend("fused"):
        # each has banks of its own, which begin alike; the authors' logarithm keeps four digits
        torch.testing.assert_close(steps[implementation](), steps["eager"]().squeeze(), rtol=2e-3, atol=0)
        synchronize = torch.cuda.synchronize if device == "cuda" else lambda: None

        def run():
            steps[implementation]()
            synchronize()

        benchmark(run)
