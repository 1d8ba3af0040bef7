"""Derivatives of every loss in the table of :mod:`every_op`: right, or an error where there are none."""

from __future__ import annotations

import pytest
import torch
from backends import BACKENDS, IN_PYTHON
from every_op import LOSSES, TABLE, assert_same_bits, evaluate, upstream
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

from sftn_fast import ops

each_loss = pytest.mark.parametrize("name", LOSSES)
everywhere = pytest.mark.parametrize("backend", [*BACKENDS, IN_PYTHON], indirect=True)
fused = pytest.mark.parametrize("backend", [*BACKENDS[1:], IN_PYTHON], indirect=True)


def double(op, backend, **sizes):
    return op.arguments(dtype=torch.float64, device=backend.device, **sizes)


@everywhere
@pytest.mark.parametrize("name", [name for name in LOSSES if TABLE[name].smooth])
def test_gradcheck(backend, name):
    op = TABLE[name]
    leaves = [double(op, backend, n=3, width=4)[key].requires_grad_() for key in op.differentiable]

    def total(*values):  # build arguments for every call, which may change a state
        arguments = double(op, backend, n=3, width=4)
        return op.call(ops, arguments | dict(zip(op.differentiable, values, strict=True)))[0]

    assert torch.autograd.gradcheck(total, leaves, eps=1e-6, atol=1e-6, rtol=1e-5, fast_mode=True)


@everywhere
@each_loss
def test_gradients_only_where_asked(backend, name):
    """Each input alone gets the same gradient as with the others, and the others get none."""
    op = TABLE[name]
    full = evaluate(op, double(op, backend))
    for wanted in op.differentiable:
        arguments = double(op, backend)
        arguments[wanted].requires_grad_()
        total = op.call(ops, arguments)[0]
        total.backward(upstream(total))
        for key in op.differentiable:
            assert (arguments[key].grad is not None) == (key == wanted)
        torch.testing.assert_close(arguments[wanted].grad, full.grads[wanted], rtol=1e-10, atol=1e-12)


@everywhere
@pytest.mark.parametrize("name", [name for name in LOSSES if not TABLE[name].state])
def test_activation_checkpointing(backend, name):
    """Saved tensors can be recomputed for the backward pass, which reads them once."""
    op = TABLE[name]

    def recomputed(module, arguments):
        return checkpoint(op.call, module, arguments, use_reentrant=False)

    assert_same_bits(evaluate(op, double(op, backend), call=recomputed), evaluate(op, double(op, backend)))


@everywhere
@each_loss
def test_only_the_total_has_a_gradient(backend, name):
    op = TABLE[name]
    arguments = op.arguments(device=backend.device)
    for key in op.differentiable:
        arguments[key].requires_grad_()
    results = op.call(ops, arguments)
    assert [result.requires_grad for result in results] == [True] + [False] * (len(results) - 1)


@everywhere
@each_loss
def test_the_total_may_be_written_to(backend, name):
    """As by ``loss += other`` and ``loss /= steps``: the backward pass doesn't need its value."""
    op = TABLE[name]

    def gradients(doubled):
        arguments = double(op, backend)
        leaves = [arguments[key].requires_grad_() for key in op.differentiable]
        return torch.autograd.grad(doubled(op.call(ops, arguments)[0]).sum(), leaves)

    written, computed = gradients(lambda total: total.mul_(2)), gradients(lambda total: total * 2)
    assert all(map(torch.equal, written, computed))


@everywhere
@pytest.mark.parametrize(("name", "key"), [(name, key) for name, op in TABLE.items() for key in op.refused])
def test_no_gradient_is_an_error(backend, name, key):
    arguments = TABLE[name].arguments(device=backend.device)
    arguments[key].requires_grad_()
    with pytest.raises((RuntimeError, TypeError, ValueError), match=key):
        TABLE[name].call(ops, arguments)


@everywhere
@pytest.mark.parametrize(("name", "key"), [(name, key) for name, op in TABLE.items() for key in op.constant])
def test_constants_are_no_part_of_the_graph(backend, name, key):
    arguments = TABLE[name].arguments(device=backend.device)
    arguments[key].requires_grad_()
    assert not any(result.requires_grad for result in TABLE[name].call(ops, arguments))


@fused
@each_loss
def test_second_derivatives_are_refused(backend, name):
    """A gradient penalty raises instead of continuing without the penalty."""
    op = TABLE[name]
    for key in op.differentiable:
        arguments = double(op, backend)
        arguments[key].requires_grad_()
        total = op.call(ops, arguments)[0].sum()
        (grad,) = torch.autograd.grad(total, arguments[key], create_graph=True)
        with pytest.raises(RuntimeError, match="no second derivatives"):
            (total + grad.square().sum()).backward()


@fused
@each_loss
def test_functorch_is_refused(backend, name):
    """The transforms hide which input requires a gradient: the raw ops would treat it as a constant."""
    op = TABLE[name]
    key = op.differentiable[0]
    arguments = double(op, backend)

    def total(x):
        return op.call(ops, arguments | {key: x})[0].sum()

    with pytest.raises(RuntimeError, match=r"functorch transforms|Batching rule"):
        torch.func.vmap(total)(torch.stack([arguments[key]] * 2).requires_grad_())
    for transform in (torch.func.grad, torch.func.jacrev, lambda f: lambda x: torch.func.jvp(f, (x,), (x,))):
        with pytest.raises(RuntimeError, match=r"functorch transforms.*backend\('reference'\)"):
            transform(total)(arguments[key])


@fused
@each_loss
def test_forward_mode_is_refused(backend, name):
    op = TABLE[name]
    for key in op.differentiable:
        arguments = double(op, backend)
        tangent = torch.ones_like(arguments[key])
        with forward_ad.dual_level(), pytest.raises(RuntimeError, match=r"jvp.*backend\('reference'\)"):
            op.call(ops, arguments | {key: forward_ad.make_dual(arguments[key], tangent)})
