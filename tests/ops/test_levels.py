"""Every loss at each level of vector instructions that the machine has below its highest, and the switch itself.

The other tests run at the highest level. A level is set within the process, by an op that is for tests only.
"""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Iterator

import pytest
import torch
from every_op import TABLE, assert_close, assert_same_bits, evaluate, widened
from families import ids, needs_kernels

from sftn_fast import info, ops
from sftn_fast.ops import _capability, reference

LEVELS = _capability.available()
pytestmark = needs_kernels


@pytest.fixture(autouse=True)
def fused() -> Iterator[None]:
    """Let no loss fall back to plain PyTorch, and restore the level."""
    before = _capability.current()
    with ops.backend("fused"):
        yield
    if before:
        _capability.use(before)


@pytest.mark.parametrize("level", LEVELS[:-1])
@pytest.mark.parametrize("name", TABLE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], **ids)
def test_values_and_gradients(level, name, dtype):
    op = TABLE[name]
    _capability.use(level)
    for n, width in ((5, 9), (24, 65)):
        expected = evaluate(op, widened(op.arguments(dtype=dtype, n=n, width=width)), module=reference)
        assert_close(evaluate(op, op.arguments(dtype=dtype, n=n, width=width)), expected)


@pytest.mark.parametrize("name", [name for name in TABLE if TABLE[name].draws])
def test_draws_do_not_depend_on_the_level(name):
    outcomes = []
    for level in LEVELS:
        _capability.use(level)
        outcomes.append(evaluate(TABLE[name], TABLE[name].arguments()))
    for outcome in outcomes[1:]:
        assert_same_bits(outcomes[0], outcome)


@pytest.mark.skipif(len(LEVELS) < 2, reason="this machine or library has one level")
def test_levels_are_different_code():
    """Above the lowest level a product and a sum are rounded once, which changes some bits of 12,000."""
    op, bits = TABLE["kd"], []
    for level in ("default", "avx2"):
        _capability.use(level)
        assert _capability.current() == level
        bits.append(evaluate(op, op.arguments(n=24, width=500)).grads["student_logits"])
    assert not torch.equal(*bits)


@pytest.mark.parametrize("level", LEVELS)
def test_the_variable_chooses(level, monkeypatch):
    monkeypatch.setenv(_capability.VARIABLE, level)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _capability.choose()
    assert _capability.current() == level
    assert info.instructions().startswith(level)
    assert all(name in info.instructions() for name in LEVELS)


@pytest.mark.parametrize("word", ["avx1024", "AVX2", "avx512", "0"])
def test_what_can_not_be_used_leaves_the_level_with_one_line(word, monkeypatch):
    monkeypatch.setattr(_capability, "available", lambda: LEVELS[:2])  # avx512 is missing on every machine
    monkeypatch.setenv(_capability.VARIABLE, word)
    known, highest = ", ".join(LEVELS[:2]), _capability.current()
    with pytest.warns(UserWarning) as caught:
        _capability.choose()
    (warning,) = caught
    assert str(warning.message) == (
        f"SFTN_CPU_CAPABILITY must be one of {known} on this machine, got {word!r}; the kernels use {highest}"
    )
    assert _capability.current() == highest


@pytest.mark.parametrize("level", [-1, len(LEVELS), 2**40])
def test_a_level_that_the_machine_lacks_is_refused(level):
    with pytest.raises(RuntimeError, match=rf"level must be from 0 to {len(LEVELS) - 1}, got {level}"):
        torch.ops.sftn_fast.set_cpu_level(level)


def test_the_variable_is_read_when_the_library_loads():
    program = "from sftn_fast.ops import _capability; print(_capability.current())"
    environment = {**os.environ, "SFTN_CPU_CAPABILITY": "default"}
    command = [sys.executable, "-W", "error::UserWarning", "-c", program]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["default"]
