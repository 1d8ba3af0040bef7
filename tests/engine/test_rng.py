from __future__ import annotations

import io
import random

import numpy as np
import torch

from sftn_fast.engine import seed_everything
from sftn_fast.engine.rng import rng_state, set_rng_state

CPU = torch.device("cpu")


def draws() -> list[float]:
    return [random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), torch.rand(()).item()]  # noqa: NPY002


def test_a_seed_fixes_every_generator():
    seed_everything(2**40 + 7)
    first = draws()
    assert draws() != first
    seed_everything(2**40 + 7)
    assert draws() == first


def test_the_state_goes_through_a_checkpoint():
    seed_everything(1)
    draws()  # Python's and NumPy's generators keep half of a Gaussian pair
    buffer = io.BytesIO()
    torch.save(rng_state(CPU), buffer)
    expected = draws() + draws()
    seed_everything(2)
    set_rng_state(torch.load(io.BytesIO(buffer.getvalue()), weights_only=True), CPU)
    assert draws() + draws() == expected
