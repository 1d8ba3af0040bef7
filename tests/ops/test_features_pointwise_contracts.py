"""Contracts of hint, AB, OH and VID besides values: requested gradients, bits, copies, compilers, errors."""

from __future__ import annotations

import math

import pytest
import torch
from backends import BACKENDS
from families import DTYPES, FAKES, channels_last, ids, needs_kernels, on_threads, refusals
from features_pointwise_table import LOSSES, differentiate, expected, make
from pairing import paired
from precision import assert_rounded_once, rounding

from bench.measure import peak_memory
from sftn_fast import ops
from sftn_fast.ops.features_pointwise import AB, HINT, OH, VID

all_losses = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())

# ---- what may be asked for ----


@all_losses
def test_gradients_only_where_asked(backend, loss):
    arguments = make((2, 3, 6, 6), dtype=torch.float64, device=backend.device)
    full = expected(loss, *arguments)
    allowed = [True, loss.teacher_grad, loss.channel_grad]
    for asked in range(1, 8):
        flags = [bool(asked >> i & 1) for i in range(3)]
        if any(flag and not allow for flag, allow in zip(flags, allowed, strict=True)):
            continue
        leaves = [x.detach().requires_grad_(flag) for x, flag in zip(arguments, flags, strict=True)]
        loss.run(ops, *leaves).backward(torch.tensor(-1.7, device=backend.device))
        for leaf, flag, grad in zip(leaves, flags, (full.student, full.teacher, full.channel), strict=True):
            assert (leaf.grad is not None) == flag
            if flag:
                torch.testing.assert_close(leaf.grad, grad)


@all_losses
def test_without_gradients(backend, loss):
    student, teacher, channel = make((2, 3, 4, 4), dtype=torch.float32, device=backend.device)
    with_grad = loss.run(ops, student.requires_grad_(), teacher, channel)
    teacher.requires_grad_()
    with torch.no_grad():
        quiet = loss.run(ops, student, teacher, channel)
    assert not quiet.requires_grad
    assert quiet.item() == with_grad.item()


@paired(backend=BACKENDS, last=[False, True], loss=LOSSES)
def test_gradcheck(backend, loss, last):
    student, teacher, channel = make((2, 3, 2, 2), dtype=torch.float64, device=backend.device)
    leaves = [channels_last(x) if last else x for x in (student, teacher)] + [channel]
    for leaf, wanted in zip(leaves, (True, loss.teacher_grad, loss.channel_grad), strict=True):
        leaf.requires_grad_(wanted)
    assert torch.autograd.gradcheck(lambda *x: loss.run(ops, *x), leaves, eps=1e-6, atol=1e-7, fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], **ids)
def test_half_precision_is_rounded_once(backend, dtype):
    for loss in LOSSES.values():
        arguments = make((8, 16, 5, 5), dtype=dtype, device=backend.device)
        true = expected(loss, *arguments)
        ours = differentiate(loss, ops, *arguments)
        off = rounding(true.student.numel())
        assert ours.total.item() == pytest.approx(true.total.item(), rel=off)
        assert_rounded_once(ours.student, true.student, off)


# ---- conduct ----


@paired(backend=BACKENDS, dtype=DTYPES, loss=LOSSES)
def test_inputs_are_not_written_to(backend, loss, dtype):
    arguments = make((3, 5, 7, 7), dtype=dtype, device=backend.device)
    before = [x.clone() for x in arguments]
    differentiate(loss, ops, *arguments)
    assert all(torch.equal(a, b) for a, b in zip(arguments, before, strict=True))


@all_losses
def test_same_inputs_same_bits(backend, loss):
    arguments = make((6, 20, 7, 7), dtype=torch.float32, device=backend.device)
    first, second = (differentiate(loss, ops, *arguments) for _ in range(2))
    assert first.total.item() == second.total.item()
    assert all(torch.equal(a, b) for a, b in zip(first.grads, second.grads, strict=True))


@all_losses
@pytest.mark.parametrize("shape", [(64, 48, 8, 8), (512, 600), (96, 40, 4, 4), (2, 3, 200, 200)], **ids)
def test_threads_do_not_change_the_bits(loss, shape):
    arguments = make(shape, dtype=torch.float32, device="cpu")
    results = on_threads(lambda: differentiate(loss, ops, *arguments))
    for result in results[1:]:
        assert result.total.item() == results[0].total.item()
        assert all(torch.equal(a, b) for a, b in zip(result.grads, results[0].grads, strict=True))


@needs_kernels
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("name", LOSSES)
def test_nothing_is_copied_or_kept(name, last):
    """Only the gradient, one map, and sums of a few kilobytes are allocated."""
    student, teacher, channel = make((16, 64, 32, 32), dtype=torch.float32, device="cpu")
    if last:
        student, teacher = channels_last(student), channels_last(teacher)
    student.requires_grad_()

    def step():
        student.grad = None
        LOSSES[name].run(ops, student, teacher, channel).backward()

    with ops.backend("fused"):
        assert peak_memory(step) < 1.01 * 4 * student.numel()


# ---- compilers ----


@needs_kernels
@pytest.mark.parametrize("kind", [HINT, AB, OH, VID])
@pytest.mark.parametrize("wanted", [(True, True), (False, True), (True, False)])
def test_opcheck(kind, wanted):
    """Maps in channels last and every choice of gradients; `test_compile.py` has contiguous maps."""
    student, teacher, channel = make((2, 5, 3, 3), dtype=torch.bfloat16, device="cpu")
    student, teacher = channels_last(student), channels_last(teacher)
    channel = channel if kind in (OH, VID) else None
    namespace, scalars = torch.ops.sftn_fast, (kind, 0.5, 0.1)
    torch.library.opcheck(
        namespace.features_pointwise_forward.default, (student, teacher, channel, *scalars), test_utils=FAKES
    )
    total, stats = namespace.features_pointwise_forward(student, teacher, channel, *scalars)
    backward = (torch.ones_like(total), student, teacher, channel, stats, *scalars, *wanted, kind == VID)
    torch.library.opcheck(namespace.features_pointwise_backward.default, backward, test_utils=FAKES)


@needs_kernels
def test_traced_whole_in_channels_last():
    """No graph break, also with a changing batch, and the values of the eager call."""
    loss = LOSSES["oh"]
    torch._dynamo.reset()

    class Compiled:
        run = staticmethod(
            torch.compile(lambda _, s, t, c: loss.run(ops, s, t, c), fullgraph=True, dynamic=True, backend="aot_eager")
        )
        teacher_grad, channel_grad = loss.teacher_grad, loss.channel_grad

    for n in (4, 3):
        student, teacher, channel = make((n, 6, 3, 3), dtype=torch.float32, device="cpu")
        student, teacher = channels_last(student), channels_last(teacher)
        eager, compiled = (differentiate(x, ops, student, teacher, channel) for x in (loss, Compiled))
        torch.testing.assert_close(compiled.total, eager.total)
        for a, b in zip(compiled.grads, eager.grads, strict=True):
            torch.testing.assert_close(a, b)


# ---- errors ----

X, C = torch.zeros(4, 3, 2, 2), torch.zeros(3)
LEARNED = torch.zeros(3, requires_grad=True)

TYPE_ERRORS = {
    "a list": (lambda: ops.hint_loss([0.0], X), "student_features must be a tensor, got list"),
    "no teacher": (lambda: ops.ab_loss(X, None), "teacher_preact must be a tensor, got NoneType"),
    "integers": (
        lambda: ops.oh_loss(X.long(), X, C),
        "student_preact must be float16, bfloat16, float32 or float64, got torch.int64",
    ),
    "complex": (lambda: ops.vid_loss(X, C, X.cfloat()), "teacher_features must be float16.* got torch.complex64"),
    "margin a number": (lambda: ops.oh_loss(X, X, 1.0), "margin must be a tensor, got float"),
    "margin integers": (lambda: ops.oh_loss(X, X, C.long()), "margin must be float16.* got torch.int64"),
    "margin of ab a tensor": (lambda: ops.ab_loss(X, X, margin=C), "margin must be a number, got Tensor"),
    "margin of ab learned": (
        lambda: ops.ab_loss(X, X, margin=LEARNED),
        "margin must be a number: the loss has no gradient with respect to it",
    ),
    "eps text": (lambda: ops.vid_loss(X, C, X, eps="0"), "eps must be a number, got str"),
    "weight": (lambda: ops.oh_margin(1.0, C), "weight must be a tensor, got float"),
}

VALUE_ERRORS = {
    "one dimension": (lambda: ops.hint_loss(C, C), r"student_features must be \[N, C, \.\.\.\] .* got \[3\]"),
    "no channels": (
        lambda: ops.hint_loss(X[:, :0], X[:, :0]),
        r"student_features must be \[N, C, \.\.\.\] with C at least 1, got \[4, 0, 2, 2\]",
    ),
    "hint shape": (
        lambda: ops.hint_loss(X, X[:2]),
        r"teacher_features must have the shape of student_features, \[4, 3, 2, 2\], got \[2, 3, 2, 2\]",
    ),
    "ab shape": (
        lambda: ops.ab_loss(X, X[..., :1]),
        r"teacher_preact must have the shape of student_preact, \[4, 3, 2, 2\], got \[4, 3, 2, 1\]",
    ),
    "oh broadcasts": (
        lambda: ops.oh_loss(X, X[:, :1], C),
        r"teacher_preact must have the shape of student_preact, \[4, 3, 2, 2\], got \[4, 1, 2, 2\]",
    ),
    "vid channels": (
        lambda: ops.vid_loss(X, C, X[:, :2]),
        r"teacher_features must have the shape of mean, \[4, 3, 2, 2\], or .* got \[4, 2, 2, 2\]",
    ),
    "vid sizes": (
        lambda: ops.vid_loss(X, C, torch.zeros(4, 3, 1, 3)),
        r"teacher_features must have the shape of mean, .* got \[4, 3, 1, 3\]",
    ),
    "vid no pixels": (lambda: ops.vid_loss(X, C, X[:, :, :0]), r"teacher_features .* got \[4, 3, 0, 2\]"),
    "device": (
        lambda: ops.hint_loss(X, X.to("meta")),
        "teacher_features must be on the device of student_features, cpu, got meta",
    ),
    "margin device": (
        lambda: ops.oh_loss(X, X, C.to("meta")),
        "margin must be on the device of student_preact, cpu, got meta",
    ),
    "margin length": (
        lambda: ops.oh_loss(X, X, C[:2]),
        r"margin must be \[C\] = \[3\], the channels of student_preact, got \[2\]",
    ),
    "log_scale shape": (lambda: ops.vid_loss(X, C[:, None], X), r"log_scale must be \[C\], got \[3, 1\]"),
    "margin learned": (
        lambda: ops.oh_loss(X, X, LEARNED),
        "margin must not require a gradient: the loss has none with respect to it",
    ),
    "teacher of ab learned": (
        lambda: ops.ab_loss(X, X.clone().requires_grad_()),
        "teacher_preact must not require a gradient: the loss has none with respect to it",
    ),
    "margin nan": (lambda: ops.ab_loss(X, X, margin=math.nan), "margin must be a finite number, got nan"),
    "eps zero": (lambda: ops.vid_loss(X, C, X, eps=0), "eps must be a finite number above 0, got 0"),
    "bias shape": (lambda: ops.oh_margin(C, C[:2]), r"bias must have the shape of weight, \[3\], got \[2\]"),
    "weight shape": (lambda: ops.oh_margin(X, X), r"weight must be \[C\], got \[4, 3, 2, 2\]"),
}


test_type_errors = refusals(TypeError, TYPE_ERRORS)
test_value_errors = refusals(ValueError, VALUE_ERRORS)
