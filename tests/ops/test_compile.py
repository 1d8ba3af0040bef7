"""The raw ops and the losses under PyTorch's compilers."""

from __future__ import annotations

import pytest
import torch
from logits_table import LOSSES, differentiate, make

from sftn_fast import ops
from sftn_fast.ops import _library
from sftn_fast.ops.logits import Options

needs_kernels = pytest.mark.skipif(not _library.CPU.loaded, reason=f"no CPU kernels: {_library.CPU.error}")


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("rows", [False, True])
@pytest.mark.parametrize("wanted", [(True, True), (True, False), (False, True), (False, False)])
def test_opcheck(dtype, rows, wanted):
    teacher, students, target = make(LOSSES["sftn"], 4, 9, dtype=dtype, device="cpu")
    target = None if rows else target
    options = Options(2.0, 1.0, 0.5, 3.0, 1 / 3, 0.25, rows=rows)
    namespace = torch.ops.sftn_fast
    torch.library.opcheck(namespace.logits_forward.default, (teacher, students, target, *options))
    total, parts, stats = namespace.logits_forward(teacher, students, target, *options)
    backward = (torch.ones_like(total), teacher, students, target, parts, stats, *options, *wanted)
    torch.library.opcheck(namespace.logits_backward.default, backward)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("kind", ["fused", "reference"])
def test_traced_whole(name, kind):
    """No graph break, and the values of the eager call."""
    if kind == "fused" and not _library.CPU.loaded:
        pytest.skip(f"no CPU kernels: {_library.CPU.error}")
    loss = LOSSES[name]
    arguments = make(loss, 5, 12, dtype=torch.float32, device="cpu")
    torch._dynamo.reset()

    class Compiled:
        total = staticmethod(
            torch.compile(lambda _, t, s, y: loss.total(ops, t, s, y), fullgraph=True, backend="aot_eager")
        )

    with ops.backend(kind):
        eager = differentiate(loss, ops, *arguments)
        compiled = differentiate(Compiled, ops, *arguments)
    torch.testing.assert_close(compiled.total, eager.total)
    for a, b in zip(compiled.grads, eager.grads, strict=True):
        torch.testing.assert_close(a, b)


@needs_kernels
def test_traced_with_changing_batch():
    loss = LOSSES["kd_ce"]
    torch._dynamo.reset()

    class Compiled:
        total = staticmethod(
            torch.compile(
                lambda _, t, s, y: loss.total(ops, t, s, y), fullgraph=True, dynamic=True, backend="aot_eager"
            )
        )

    for n in (4, 7, 2):
        arguments = make(loss, n, 12, dtype=torch.float32, device="cpu")
        eager, compiled = differentiate(loss, ops, *arguments), differentiate(Compiled, ops, *arguments)
        torch.testing.assert_close(compiled.total, eager.total)
        torch.testing.assert_close(compiled.student_grads, eager.student_grads)


@needs_kernels
def test_inductor():
    """Inside a compiled network: the code that inductor writes calls the op."""
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
def test_exported():
    class Net(torch.nn.Module):
        def forward(self, student, teacher):
            return ops.kd_loss(student, teacher)

    student, teacher = torch.randn(3, 5), torch.randn(3, 5)
    exported = torch.export.export(Net(), (student, teacher))
    torch.testing.assert_close(exported.module()(student, teacher), ops.kd_loss(student, teacher))
