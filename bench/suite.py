"""Tests of a family's cases under pytest-benchmark."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

from bench.cases import of_family
from bench.measure import synchronize
from sftn_fast import ops

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]
SLOW = 0.2  # seconds; a slower call gets three rounds only
LOOSE = {"rtol": 2e-3, "atol": 1e-5}  # the authors' float32 formulas cancel


def throughput_of(family: str) -> Callable[..., None]:
    """Build the test of a family: every case, implementation and device, after a check that results agree."""

    @pytest.mark.parametrize("implementation", ["eager", "reference", "ours"])
    @pytest.mark.parametrize("case", of_family(family), ids=lambda case: case.name)
    @pytest.mark.parametrize("device", DEVICES)
    def test_forward_and_backward(benchmark: Any, device: str, case: Any, implementation: str) -> None:
        benchmark.group = f"{case.name} on {device}"

        def run() -> None:
            step()
            synchronize(device)

        with ops.backend("fused"):
            # built again for each: a call may change the state that the next one starts from
            expected = case.steps(device)["eager"]()
            step = case.steps(device)[implementation]
            torch.testing.assert_close(step().squeeze(), expected.squeeze(), **LOOSE)  # some of theirs are [1]
            start = time.perf_counter()
            run()
            if time.perf_counter() - start > SLOW:
                benchmark.pedantic(run, rounds=3)
            else:
                benchmark(run)

    return test_forward_and_backward
