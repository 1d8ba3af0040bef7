"""Every loss under PyTorch's compilers, and the raw ops that it calls under opcheck: the table of :mod:`every_op`."""

from __future__ import annotations

import pytest
import torch
from every_op import LOSSES, TABLE, assert_close, evaluate
from families import ids, needs_kernels
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from sftn_fast import ops
from sftn_fast.ops import _library

each = pytest.mark.parametrize("name", [name for name, op in TABLE.items() if op.traceable])

# One of each kind suffices: what is compiled around the raw ops is alike, and each costs seconds.
INDUCTOR = ("kd_ce", "sftn", "crd", "rkd", "sp", "adapted_hint")

NOT_TRACED = {("reference", "negatives"): "plain PyTorch draws again as long as the values ask for it"}


class RawCalls(TorchDispatchMode):
    """Records the raw ops that are called inside it, with copies of their arguments."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "sftn_fast":
            copies = tree_map_only(torch.Tensor, lambda x: x.detach().clone(), (args, kwargs or {}))
            self.calls.append((function, *copies))
        return function(*args, **(kwargs or {}))


@needs_kernels
@each
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], **ids)
@pytest.mark.parametrize("n", [4, 0])
def test_opcheck(name, dtype, n):
    """Schemas, fakes and tracing of each raw op, on the arguments that the loss gives it, forward and backward."""
    with ops.backend("fused"), RawCalls() as raw:
        evaluate(TABLE[name], TABLE[name].arguments(dtype=dtype, n=n))
    assert raw.calls or n == 0 or not TABLE[name].differentiable
    for function, args, kwargs in raw.calls:
        torch.library.opcheck(function, args, kwargs)


@needs_kernels
@pytest.mark.parametrize("name", LOSSES)
def test_opcheck_of_single_gradients(name):
    """The raw ops where one input alone asks for a gradient."""
    op = TABLE[name]
    for key in op.differentiable:
        arguments = op.arguments()
        arguments[key].requires_grad_()
        with ops.backend("fused"), RawCalls() as raw:
            op.call(ops, arguments)[0].sum().backward()
        for function, args, kwargs in raw.calls:
            torch.library.opcheck(function, args, kwargs)


def check_compiled(name, *sizes, **options):
    """No graph break, and the values, gradients and states of the eager call."""
    op = TABLE[name]
    torch._dynamo.reset()
    compiled = torch.compile(lambda module, arguments: op.call(module, arguments), fullgraph=True, **options)
    for n in sizes:
        assert_close(evaluate(op, op.arguments(n=n), call=compiled), evaluate(op, op.arguments(n=n)))


@each
@pytest.mark.parametrize("kind", ["fused", "reference"])
def test_traced_whole(name, kind):
    if kind == "fused" and not _library.CPU.loaded:
        pytest.skip(f"no CPU kernels: {_library.CPU.error}")
    if (kind, name) in NOT_TRACED:
        pytest.skip(NOT_TRACED[kind, name])
    with ops.backend(kind):
        check_compiled(name, 5, backend="aot_eager")


@needs_kernels
@each
def test_traced_with_changing_batch(name):
    check_compiled(name, 4, 7, 2, backend="aot_eager", dynamic=True)


@needs_kernels
@pytest.mark.slow
@pytest.mark.parametrize("name", INDUCTOR)
def test_inductor(name):
    """The code that inductor writes calls the ops."""
    check_compiled(name, 5)


@needs_kernels
def test_inductor_inside_a_network():
    torch._dynamo.reset()
    torch.manual_seed(0)
    net = torch.nn.Linear(6, 10)
    x, teacher, target = torch.randn(8, 6), torch.randn(8, 10), torch.randint(10, (8,))

    def step(x):
        return ops.kd_ce_loss(net(x), teacher, target).total

    grads = []
    for function in (step, torch.compile(step, fullgraph=True)):
        net.zero_grad()
        function(x).backward()
        grads.append(net.weight.grad.clone())
    torch.testing.assert_close(grads[0], grads[1])


@needs_kernels
@pytest.mark.parametrize("name", [name for name in LOSSES if not TABLE[name].state])
def test_exported(name):
    op = TABLE[name]
    arguments, same = op.arguments(), op.arguments()

    class Net(torch.nn.Module):
        def forward(self, arguments):
            return op.call(ops, arguments)

    exported = torch.export.export(Net(), (arguments,))
    for actual, expected in zip(exported.module()(arguments), op.call(ops, same), strict=True):
        torch.testing.assert_close(actual, expected)
