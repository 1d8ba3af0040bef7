"""Tensors created in ``torch.inference_mode()``, as by the teachers of many scripts."""

from __future__ import annotations

import pytest
import torch
from every_op import LOSSES, TABLE, evaluate

from sftn_fast import ops
from sftn_fast.ops._autograd import savable


def made_there(arguments, keys):
    """Return the arguments, with the tensors of ``keys`` created in inference mode."""
    with torch.inference_mode():
        return arguments | {key: arguments[key].clone() for key in keys}


@pytest.mark.parametrize("name", LOSSES)
def test_losses_take_them(backend, name):
    """All arguments except the first are inference tensors: values and gradients are those of ordinary tensors."""
    op = TABLE[name]
    first = op.differentiable[0]
    arguments, same = (op.arguments(device=backend.device) for _ in range(2))
    tensors = [key for key, x in arguments.items() if isinstance(x, torch.Tensor) and key not in (first, *op.state)]
    arguments = made_there(arguments, tensors)
    assert tensors and all(arguments[key].is_inference() for key in tensors)

    leaf, plain = (x[first].detach().requires_grad_() for x in (arguments, same))
    totals = op.call(ops, arguments | {first: leaf})[0], op.call(ops, same | {first: plain})[0]
    assert torch.equal(*totals)
    grads = [torch.autograd.grad(total.sum(), x)[0] for total, x in zip(totals, (leaf, plain), strict=True)]
    assert torch.equal(*grads)


def test_a_teacher_that_is_written_to_afterwards(backend):
    """Later writes to the same memory, as by a graph or a pool of buffers, do not change the gradient."""
    student = torch.randn(4, 6, device=backend.device).requires_grad_()
    with torch.inference_mode():
        teacher = torch.randn(4, 6, device=backend.device)
    expected = torch.autograd.grad(ops.kd_loss(student, teacher.clone()), student)[0]
    loss = ops.kd_loss(student, teacher)
    with torch.inference_mode():
        teacher.zero_()
    assert torch.equal(torch.autograd.grad(loss, student)[0], expected)


def test_nothing_is_copied_without_need():
    """Ordinary tensors are not copied, nor inference tensors without a gradient."""
    plain = torch.ones(3), None
    assert all(a is b for a, b in zip(savable(*plain), plain, strict=True))
    with torch.inference_mode():
        there = (torch.ones(3),)
        assert savable(*there)[0] is there[0]
    assert savable(*there)[0] is not there[0]


@pytest.mark.parametrize("name", ["kd", "crd", "rkd", "hint"])
def test_inside_of_inference_mode(backend, name):
    op = TABLE[name]
    expected = evaluate(op, op.arguments(device=backend.device)).results
    with torch.inference_mode():
        torch.manual_seed(0)
        results = op.call(ops, op.arguments(device=backend.device))
    assert all(torch.allclose(a, b) for a, b in zip(results, expected, strict=True))
