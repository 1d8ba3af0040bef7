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
from families import needs_kernels
from pairing import paired

from sftn_fast import info, ops
from sftn_fast.ops import _capability, _library, reference

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


@paired(dtype=[torch.float32, torch.bfloat16, torch.float64], name=list(TABLE), level=LEVELS[:-1])
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


@pytest.mark.skipif(not {"default", "avx2"} <= set(LEVELS), reason="this machine or library lacks one of the levels")
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
    for name in ("available", "of_machine"):
        monkeypatch.setattr(_capability, name, lambda: LEVELS[:2])  # avx512 is missing on every machine
    monkeypatch.setenv(_capability.VARIABLE, word)
    known, highest = ", ".join(LEVELS[:2]), _capability.current()
    with pytest.warns(UserWarning) as caught:
        _capability.choose()
    (warning,) = caught
    assert str(warning.message) == (
        f"SFTN_CPU_CAPABILITY must be one of {known} on this machine, got {word!r}; the kernels use {highest}"
    )
    assert _capability.current() == highest


def test_a_level_that_was_not_built_is_refused_with_how_to_build_it(monkeypatch):
    highest = _capability.current()
    monkeypatch.setattr(_capability, "available", lambda: (highest,))
    monkeypatch.setattr(_capability, "of_machine", lambda: ("default", "sse9", highest))
    monkeypatch.setenv(_capability.VARIABLE, "sse9")
    with pytest.warns(UserWarning) as caught:
        _capability.choose()
    assert str(caught[0].message) == (
        f"SFTN_CPU_CAPABILITY must be one of {highest} on this machine, got 'sse9'; the kernels use {highest}; "
        "`SFTN_CPU_LEVELS=all pip install --no-build-isolation -e .` in the source tree builds all levels"
    )
    assert info.instructions() == f"{highest}; not built: default, sse9 (SFTN_CPU_LEVELS=all)"


def test_a_library_for_another_processor_is_given_up(monkeypatch):
    monkeypatch.setattr(_library.CPU, "error", None)
    monkeypatch.setattr(_capability, "available", lambda: ())
    _capability.choose()
    assert _library.CPU.error.startswith("it was built for a processor with more vector instructions than this one; ")
    assert not _library.CPU.loaded


@pytest.mark.parametrize("level", [-1, len(_capability.LEVELS), 2**40])
def test_a_level_that_the_library_lacks_is_refused(level):
    with pytest.raises(RuntimeError, match=rf"level must be one of cpu_levels\(\), got {level}"):
        torch.ops.sftn_fast.set_cpu_level(level)


def test_the_variable_is_read_when_the_library_loads():
    program = "from sftn_fast.ops import _capability; print(_capability.current())"
    environment = {**os.environ, "SFTN_CPU_CAPABILITY": LEVELS[0]}
    command = [sys.executable, "-W", "error::UserWarning", "-c", program]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [LEVELS[0]]
