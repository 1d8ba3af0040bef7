"""The losses without their checks: valid arguments give the same, wrong ones are errors of the kernels."""

from __future__ import annotations

import asyncio
import threading

import pytest
import torch
from every_op import TABLE, assert_same_bits, evaluate
from families import needs_kernels

from sftn_fast import ops
from sftn_fast.ops import _checking, validation

pytestmark = needs_kernels
X = torch.zeros(4, 3)
ERRORS = (RuntimeError, ValueError, TypeError, AttributeError, IndexError)


def test_checks_are_on_until_a_block_and_after_it():
    assert _checking.checked()
    with pytest.raises(KeyError), ops.unchecked():
        assert not _checking.checked()
        raise KeyError
    assert _checking.checked()


def test_the_default_is_the_processes():
    seen = []
    try:
        ops.set_unchecked(True)
        thread = threading.Thread(target=lambda: seen.append(_checking.checked()))
        thread.start()
        thread.join()
        assert seen == [_checking.checked()] == [False]
    finally:
        ops.set_unchecked(False)
    with pytest.raises(TypeError, match="value must be True or False, got str"):
        ops.set_unchecked("no")


def test_a_block_is_of_its_thread_and_task():
    async def inside():
        with ops.unchecked():
            await asyncio.sleep(0)
            return _checking.checked()

    async def outside():
        await asyncio.sleep(0)
        return _checking.checked()

    async def both():
        return await asyncio.gather(inside(), outside())

    assert asyncio.run(both()) == [False, True]
    with ops.unchecked():
        seen = []
        thread = threading.Thread(target=lambda: seen.append(_checking.checked()))
        thread.start()
        thread.join()
    assert seen == [True]


# What the checks of a gradient prevent is a silent zero, so they stay.
STAY = {"check_constant", "check_classes"}


@pytest.mark.parametrize("name", TABLE)
def test_nothing_is_checked_and_the_result_is_the_same(name, monkeypatch):
    op = TABLE[name]
    expected, arguments = evaluate(op, op.arguments()), op.arguments()

    def fail(*_, **__):
        raise AssertionError("a check was called")

    for check in vars(validation):
        if check.startswith("check_") and check not in STAY:
            monkeypatch.setattr(validation, check, fail)
    with ops.unchecked():
        assert_same_bits(evaluate(op, arguments), expected)


WRONG = {
    "an array": lambda x: x.numpy(),
    "sparse": torch.Tensor.to_sparse,
    "no dimension": lambda x: x.sum().to(x.dtype),
    "more dimensions": lambda x: x[None, None, None],
    "a shorter batch": lambda x: x[:-1].clone(),
    "out of range": lambda x: x if x.is_floating_point() else x - 1000,
}
RIGHT = [
    ("sftn", "branch_logits", "a shorter batch"),
    ("negatives", "index", "a shorter batch"),
    ("negatives", "labels", "a shorter batch"),
    ("negatives", "labels", "out of range"),
]
"""What is no wrong argument after all."""

NO_KERNEL = ["oh_margin", "running_mean", "running_var"]
"""An op and arguments that plain PyTorch computes with, which may broadcast them."""


@pytest.mark.parametrize("change", WRONG)
@pytest.mark.parametrize("name", [name for name in TABLE if name not in NO_KERNEL])
def test_wrong_arguments_are_errors_of_the_kernels(name, change):
    """No result, and no access outside of a tensor. Both ways: with a student that learns and without."""
    op = TABLE[name]
    for key, value in op.arguments().items():
        if not isinstance(value, torch.Tensor) or key in NO_KERNEL or (name.split("-")[0], key, change) in RIGHT:
            continue
        wrong = WRONG[change](value)
        if wrong is value:
            continue
        for learns in (False, True):
            arguments = op.arguments()
            for other in op.differentiable:
                arguments[other].requires_grad_(learns and other != key)
            with ops.unchecked(), pytest.raises(ERRORS):
                op.call(ops, arguments | {key: wrong})


def test_compiled_code_follows_the_switch():
    compiled = torch.compile(lambda x: ops.kd_loss(x, X, -1.0), fullgraph=True, backend="eager")
    with pytest.raises(ERRORS, match="temperature must be a finite number above 0"):
        compiled(X)
    with ops.unchecked(), pytest.raises(ERRORS, match="temperature must be positive"):
        compiled(X)
