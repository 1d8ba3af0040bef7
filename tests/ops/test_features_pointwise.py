"""Hint, AB, OH and VID: one table over backends, dtypes, shapes and layouts, against float64."""

from __future__ import annotations

import math
import time

import pytest
import torch
import torch.nn.functional as F
from features_pointwise_table import LOSSES, ORACLE, assert_close, differentiate, expected, make

from bench.cases.features import POINTWISE_CASES
from bench.measure import peak_memory
from sftn_fast import ops
from sftn_fast.ops import _library
from sftn_fast.ops.features_pointwise import AB, HINT, OH, VID

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
# A vector, a sequence, volumes, one of everything; few pixels, many; runs with a ragged end; many channels.
SHAPES = [(1, 1), (5, 3), (2, 31, 4), (3, 7, 2, 3, 5), (1, 1, 1, 1), (1, 1, 70, 3), (2, 1, 3, 3), (4, 5, 1, 1)]
SHAPES += [(3, 8, 4, 4), (3, 17, 7, 7), (2, 3, 9, 8), (2, 2, 70, 61), (2, 300, 3, 3), (40, 24, 2, 2), (2, 4200, 1, 1)]
ids = {"ids": lambda value: str(value).removeprefix("torch.")}
all_losses = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())
needs_kernels = pytest.mark.skipif(not _library.CPU.loaded, reason=f"no CPU kernels: {_library.CPU.error}")


def check(loss, student, teacher, channel):
    actual = differentiate(loss, ops, student, teacher, channel)
    assert_close(actual, expected(loss, student, teacher, channel), student.dtype)
    return actual


def channels_last(x):
    return x.contiguous(memory_format=torch.channels_last)


@all_losses
@pytest.mark.parametrize("dtype", DTYPES, **ids)
def test_values_and_gradients(backend, loss, dtype):
    for shape in SHAPES:
        check(loss, *make(shape, dtype=dtype, device=backend.device))


@all_losses
@pytest.mark.parametrize("dtype", DTYPES, **ids)
def test_channels_last(backend, loss, dtype):
    """The gradients come in the layout of the maps."""
    for shape in ((2, 3, 2, 5), (3, 64, 3, 3), (2, 17, 9, 4), (70, 5, 2, 2), (1, 2051, 2, 2)):
        student, teacher, channel = make(shape, dtype=dtype, device=backend.device)
        student, teacher = channels_last(student), channels_last(teacher)
        result = check(loss, student, teacher, channel)
        if backend.fused:
            assert all(grad.is_contiguous(memory_format=torch.channels_last) for grad in result.grads[:1])


@pytest.mark.parametrize("shape", [(64, 32, 16, 16), (700, 100), (64, 100, 3, 3)], **ids)
@pytest.mark.parametrize("loss", ["oh", "vid", "hint"])
@pytest.mark.parametrize("last", [False, True])
def test_large_maps(backend, loss, shape, last):
    if backend.name == "emulated":
        shape = (9, *shape[1:])
    student, teacher, channel = make(shape, dtype=torch.float32, device=backend.device)
    if last and len(shape) == 4:
        student, teacher = channels_last(student), channels_last(teacher)
    check(LOSSES[loss], student, teacher, channel)


# ---- values that others computed ----


def wave(shape, step, start, function=torch.sin):
    size = math.prod(shape)
    return function(torch.arange(size, dtype=torch.float64) * step + start).reshape(shape)


def stages(device):
    students = [1.5 * wave((4, 8, 4, 4), 0.31, 0.2 * i).to(device) for i in range(3)]
    teachers = [1.5 * wave((4, 8, 4, 4), 0.19, 0.3 * i, torch.cos).to(device) for i in range(3)]
    return students, teachers


def test_repdistillers_hint(backend):
    students, teachers = stages(backend.device)
    assert ops.hint_loss(students[0], teachers[0]).item() == pytest.approx(2.203703485311621, rel=1e-13)


def test_repdistillers_ab(backend):
    """Its own loss has 3/1000 and a weight a stage."""
    golden = [0.19590431899577115, 0.392650955597854, 0.7858076144383164]
    for student, teacher, weight, value in zip(*stages(backend.device), (0.25, 0.5, 1), golden, strict=True):
        assert weight * 3 / 1000 * ops.ab_loss(student, teacher).item() == pytest.approx(value, rel=1e-13)


def test_repdistillers_vid(backend):
    """Its own loss has the regressor in it, and begins with a variance of 5."""
    student = wave((4, 6, 4, 4), 0.37, 0).to(backend.device)
    teacher = wave((4, 8, 4, 4), 0.23, 0.5, torch.cos).to(backend.device)
    first, second, third = (0.3 * wave((8, inputs, 1, 1), 0.11, 0.4).to(backend.device) for inputs in (6, 8, 8))
    mean = F.conv2d(F.conv2d(F.conv2d(student, first).relu(), second).relu(), third)
    log_scale = torch.full((8,), math.log(math.exp(5 - 1e-5) - 1), dtype=torch.float64, device=backend.device)
    assert ops.vid_loss(mean, log_scale, teacher).item() == pytest.approx(0.879343759837722, rel=1e-12)


def test_overhauls_margins_and_distance(backend):
    weight = torch.tensor([1, 0.5, 2, 0.1, 1], dtype=torch.float64, device=backend.device)
    bias = torch.tensor([0, 0.2, -1, 0.5, -3], dtype=torch.float64, device=backend.device)
    golden = [-0.7978845608028654, -0.33437808587281054, -2.018320867674067, -0.3, -3.004437839042126]
    assert ops.oh_margin(weight, bias).tolist() == pytest.approx(golden, rel=1e-13)
    assert ops.oh_margin(-weight.float(), bias.float()).tolist() == pytest.approx(golden, rel=1e-6)

    (student, *_), (teacher, *_) = stages(backend.device)
    bias = 0.1 * torch.arange(8, dtype=torch.float64, device=backend.device)
    margin = ops.oh_margin(torch.ones_like(bias), bias)
    total = 4 * ops.oh_loss(student, teacher, margin)  # the golden value is a sum
    assert total.item() == pytest.approx(899.7385845216313, rel=1e-13)


@pytest.mark.parametrize("dtype", DTYPES, **ids)
def test_margin_of_any_batchnorm_is_finite(dtype):
    weight = torch.tensor([0, 0, 0, 1e-7, 1, 5], dtype=dtype)
    bias = torch.tensor([0, 2, -2, 3, -60, 40], dtype=dtype)
    margin = ops.oh_margin(weight.requires_grad_(), bias)
    assert margin.dtype == dtype
    assert not margin.requires_grad
    assert margin[:3].tolist() == [0, 0, -2]
    assert margin.isfinite().all()
    assert (margin <= 0).all()


# ---- edges of the formulas ----


def test_boundaries_of_ab(backend):
    """At the margin and at a teacher of 0, which counts as inactive."""
    student = torch.tensor([[-1.0, 1.0, 0.0, 0.0, -2.0, 2.0]], device=backend.device, requires_grad=True)
    teacher = torch.tensor([[0.0, 1.0, 0.0, 1.0, 1.0, -1.0]], device=backend.device)
    total = ops.ab_loss(student, teacher)
    total.backward()
    assert total.item() == 0 + 0 + 1 + 1 + 9 + 9
    assert student.grad.tolist() == [[0, 0, 2, -2, -6, 6]]


def test_boundaries_of_oh(backend):
    """A negative target that the student is below is left out; a teacher at or below the margin has no gradient."""
    margin = torch.tensor([-1.0], device=backend.device)
    student = torch.tensor([[-2.0], [-1.0], [0.0], [-3.0], [3.0]], device=backend.device, requires_grad=True)
    teacher = torch.tensor([[-5.0], [-5.0], [-1.0], [2.0], [-0.5]], device=backend.device, requires_grad=True)
    total = 5 * ops.oh_loss(student, teacher, margin)
    total.backward()
    assert total.item() == 0 + 0 + 1 + 25 + 12.25
    assert student.grad.flatten().tolist() == pytest.approx([0, 0, 2, -10, 7], rel=1e-6)
    assert teacher.grad.flatten().tolist() == pytest.approx([0, 0, 0, 10, -7], rel=1e-6)


@pytest.mark.parametrize("value", [-200.0, -30.0, 0.0, 30.0, 200.0])
def test_any_log_scale(backend, value):
    """The softplus neither overflows nor vanishes into eps."""
    student, teacher, _ = make((2, 3, 4, 4), dtype=torch.float64, device=backend.device)
    log_scale = torch.full((3,), value, dtype=torch.float64, device=backend.device, requires_grad=True)
    ops.vid_loss(student, log_scale, teacher).backward()
    variance = torch.logaddexp(torch.tensor(value).double(), torch.tensor(0.0)) + 1e-5
    squares = (student - teacher).square().sum((0, 2, 3))
    true = 0.5 / 96 * (32 - squares / variance) / variance * torch.tensor(value).double().sigmoid()
    torch.testing.assert_close(log_scale.grad, true.to(log_scale.grad), rtol=1e-9, atol=0)


@all_losses
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], **ids)
def test_large_half_precision_is_finite(backend, loss, dtype):
    student, teacher, channel = make((2, 3, 8, 8), dtype=dtype, device=backend.device)
    check(loss, 2000 * student, 2000 * teacher, channel)


@pytest.mark.parametrize("scale", [1e-20, 1e-30, 1e-40])
def test_tiny_values_are_theirs_or_zero(backend, scale):
    """Squares that underflow may count as nothing; gradients that are normal numbers are there."""
    student, teacher, _ = make((2, 3, 8, 8), dtype=torch.float32, device=backend.device)
    student, teacher = (scale * student).requires_grad_(), scale * teacher
    total = ops.hint_loss(student, teacher)
    total.backward(torch.tensor(384e5, device=backend.device))
    assert 0 <= total.item() < 1e-37
    torch.testing.assert_close(student.grad, 2e5 * (student - teacher).detach(), rtol=1e-3, atol=1.2e-38)


@all_losses
@pytest.mark.parametrize("where", ["student", "teacher"])
@pytest.mark.parametrize("last", [False, True])
def test_nan_shows(backend, loss, where, last):
    student, teacher, channel = make((2, 5, 7, 7), dtype=torch.float32, device=backend.device)
    (student if where == "student" else teacher)[1, 3, 6, 6] = torch.nan
    if last:
        student, teacher = channels_last(student), channels_last(teacher)
    result = differentiate(loss, ops, student, teacher, channel)
    assert result.total.isnan()
    assert result.student[0].isfinite().all()
    if backend.fused:
        assert result.student[1, 3, 6, 6].isnan()


@all_losses
@pytest.mark.parametrize("dtype", DTYPES, **ids)
@pytest.mark.parametrize("shape", [(0, 5), (0, 5, 3, 3), (4, 5, 0, 3)], **ids)
def test_no_elements(backend, loss, dtype, shape):
    result = differentiate(loss, ops, *make(shape, dtype=dtype, device=backend.device))
    assert result.total.item() == 0
    assert result.student.shape == shape
    assert all(grad.count_nonzero() == 0 for grad in result.grads)


# ---- layouts and dtypes ----

LAYOUTS = {
    "row slice": lambda x: x.repeat_interleave(2, 0)[::2],
    "channel slice": lambda x: torch.cat([x, x], 1)[:, 2 : 2 + x.shape[1]],
    "pixel step": lambda x: x.repeat_interleave(2, 3)[..., ::2],
    "offset": lambda x: torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape),
    "offset, channels last": lambda x: LAYOUTS["offset"](x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2),
    "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "expanded": lambda x: x[:1].expand(x.shape),
    "channels last": channels_last,
    "contiguous": lambda x: x,
}


@pytest.mark.parametrize("teacher_layout", ["contiguous", "channels last", "channel slice"])
@pytest.mark.parametrize("student_layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], **ids)
def test_layouts(backend, dtype, student_layout, teacher_layout):
    for name in ("ab", "oh", "vid"):
        student, teacher, channel = make((3, 12, 6, 6), dtype=dtype, device=backend.device)
        channel = torch.stack([channel, channel], 1)[:, 0]
        student, teacher = LAYOUTS[student_layout](student), LAYOUTS[teacher_layout](teacher)
        check(LOSSES[name], student, teacher, channel)


@needs_kernels
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("name", LOSSES)
def test_nothing_is_copied_or_kept(name, last):
    """Beyond the gradient, which is one map, sums of a few kilobytes."""
    student, teacher, channel = make((16, 64, 32, 32), dtype=torch.float32, device="cpu")
    if last:
        student, teacher = channels_last(student), channels_last(teacher)
    student.requires_grad_()

    def step():
        student.grad = None
        LOSSES[name].run(ops, student, teacher, channel).backward()

    with ops.backend("fused"):
        assert peak_memory(step) < 1.01 * 4 * student.numel()


@pytest.mark.parametrize("student_dtype", DTYPES, **ids)
@pytest.mark.parametrize("teacher_dtype", DTYPES, **ids)
def test_mixed_dtypes(backend, student_dtype, teacher_dtype):
    double = torch.float64 in (student_dtype, teacher_dtype)
    for name in ("hint", "oh", "vid"):
        student, teacher, channel = make((2, 5, 3, 3), dtype=torch.bfloat16, device=backend.device)
        student, teacher = student.to(student_dtype), teacher.to(teacher_dtype)
        for channel_dtype in DTYPES:
            of_dtype = channel.to(torch.bfloat16).to(channel_dtype)
            result = differentiate(LOSSES[name], ops, student, teacher, of_dtype)
            true = expected(LOSSES[name], student, teacher, of_dtype)
            assert result.total.dtype == (torch.float64 if double else torch.float32)
            assert result.total.item() == pytest.approx(true.total.item(), rel=1e-5)
            assert result.student.dtype == student_dtype
            assert result.teacher.dtype == teacher_dtype
            assert result.channel is None or result.channel.dtype == channel_dtype


# ---- VID on maps of two sizes ----


@pytest.mark.parametrize("dtype", DTYPES, **ids)
@pytest.mark.parametrize(("size", "other"), [((8, 8), (4, 4)), ((4, 4), (8, 8)), ((7, 5), (3, 5)), ((4, 6), (6, 9))])
def test_vid_pools_the_larger(backend, dtype, size, other):
    generator = torch.Generator().manual_seed(0)
    mean, teacher = (torch.randn(2, 6, *s, generator=generator).to(dtype).to(backend.device) for s in (size, other))
    channel = torch.randn(6, generator=generator).to(torch.float64 if dtype == torch.float64 else torch.float32)

    class Pooled:
        @staticmethod
        def vid_loss(mean, log_scale, teacher):
            smaller = [min(a, b) for a, b in zip(size, other, strict=True)]
            return ORACLE.vid_loss(
                F.adaptive_avg_pool2d(mean, smaller), log_scale, F.adaptive_avg_pool2d(teacher, smaller)
            )

    arguments = mean, teacher, channel.to(backend.device)
    true = differentiate(LOSSES["vid"], Pooled, *(x.double() for x in arguments))
    actual = differentiate(LOSSES["vid"], ops, *arguments)
    assert_close(actual, true, dtype)


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


@all_losses
@pytest.mark.parametrize("last", [False, True])
def test_gradcheck(backend, loss, last):
    student, teacher, channel = make((2, 3, 2, 2), dtype=torch.float64, device=backend.device)
    leaves = [channels_last(x) if last else x for x in (student, teacher)] + [channel]
    for leaf, wanted in zip(leaves, (True, loss.teacher_grad, loss.channel_grad), strict=True):
        leaf.requires_grad_(wanted)
    assert torch.autograd.gradcheck(lambda *x: loss.run(ops, *x), leaves, eps=1e-6, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], **ids)
def test_half_precision_is_no_worse_than_pytorch(backend, dtype):
    for loss in LOSSES.values():
        arguments = make((8, 16, 5, 5), dtype=dtype, device=backend.device)
        true = expected(loss, *arguments)
        ours, theirs = (differentiate(loss, module, *arguments) for module in (ops, ORACLE))
        assert abs(ours.total - true.total) <= abs(theirs.total - true.total) + 1e-6
        assert (ours.student.double() - true.student).abs().max() <= (
            theirs.student.double() - true.student
        ).abs().max() + 1e-7


# ---- conduct ----


@all_losses
@pytest.mark.parametrize("dtype", DTYPES, **ids)
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
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            results.append(differentiate(loss, ops, *arguments))
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        assert result.total.item() == results[0].total.item()
        assert all(torch.equal(a, b) for a, b in zip(result.grads, results[0].grads, strict=True))


@all_losses
def test_second_derivatives_are_refused(backend, loss):
    if not backend.fused:
        pytest.skip("plain PyTorch has second derivatives")
    student, teacher, channel = make((2, 3, 4, 4), dtype=torch.float64, device=backend.device)
    total = loss.run(ops, student.requires_grad_(), teacher, channel)
    (grad,) = torch.autograd.grad(total, student, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivatives"):
        (total + grad.square().sum()).backward()


@all_losses
def test_forward_mode_is_refused(backend, loss):
    if not backend.fused:
        pytest.skip("plain PyTorch has forward-mode derivatives")
    student, teacher, channel = make((2, 3, 4, 4), dtype=torch.float64, device=backend.device)
    with torch.autograd.forward_ad.dual_level(), pytest.raises(RuntimeError, match="jvp"):
        loss.run(ops, torch.autograd.forward_ad.make_dual(student, torch.ones_like(student)), teacher, channel)


# ---- compilers ----


@needs_kernels
@pytest.mark.parametrize("kind", [HINT, AB, OH, VID])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("wanted", [(True, True), (False, True), (True, False)])
def test_opcheck(kind, last, wanted):
    student, teacher, channel = make((2, 5, 3, 3), dtype=torch.bfloat16, device="cpu")
    if last:
        student, teacher = channels_last(student), channels_last(teacher)
    channel = channel if kind in (OH, VID) else None
    namespace, scalars = torch.ops.sftn_fast, (kind, 0.5, 0.1)
    torch.library.opcheck(namespace.features_pointwise_forward.default, (student, teacher, channel, *scalars))
    total, stats = namespace.features_pointwise_forward(student, teacher, channel, *scalars)
    backward = (torch.ones_like(total), student, teacher, channel, stats, *scalars, *wanted, kind == VID)
    torch.library.opcheck(namespace.features_pointwise_backward.default, backward)


@needs_kernels
@pytest.mark.parametrize(("name", "last"), [("hint", False), ("ab", False), ("oh", True), ("vid", False)])
def test_traced_whole(name, last):
    """No graph break, also with a changing batch, and the values of the eager call."""
    loss = LOSSES[name]
    torch._dynamo.reset()

    class Compiled:
        run = staticmethod(
            torch.compile(lambda _, s, t, c: loss.run(ops, s, t, c), fullgraph=True, dynamic=True, backend="aot_eager")
        )
        teacher_grad, channel_grad = loss.teacher_grad, loss.channel_grad

    for n in (4, 3):
        student, teacher, channel = make((n, 6, 3, 3), dtype=torch.float32, device="cpu")
        if last:
            student, teacher = channels_last(student), channels_last(teacher)
        eager, compiled = (differentiate(x, ops, student, teacher, channel) for x in (loss, Compiled))
        torch.testing.assert_close(compiled.total, eager.total)
        for a, b in zip(compiled.grads, eager.grads, strict=True):
            torch.testing.assert_close(a, b)


# ---- speed ----


@needs_kernels
@pytest.mark.parametrize("name", ["AB (64, 256, 8, 8)", "OH (64, 256, 8, 8)", "VID (64, 256, 8, 8)"])
def test_faster_than_the_authors_code(name):
    """With a generous bound, by the best of some turns, which other processes hardly touch. `bench/` has the figures."""
    (case,) = (case for case in POINTWISE_CASES if case.name == name)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        steps = case.steps("cpu")
        best = dict.fromkeys(steps, math.inf)
        with ops.backend("fused"):
            for _ in range(15):
                for implementation, step in steps.items():
                    start = time.perf_counter()
                    step()
                    best[implementation] = min(best[implementation], time.perf_counter() - start)
    finally:
        torch.set_num_threads(threads)
    assert best["ours"] < 0.4 * best["eager"], best


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
        "margin must be a number: there is no gradient with respect to it",
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
        "margin must not require a gradient: there is none with respect to it",
    ),
    "teacher of ab learned": (
        lambda: ops.ab_loss(X, X.clone().requires_grad_()),
        "teacher_preact must not require a gradient: there is none with respect to it",
    ),
    "margin nan": (lambda: ops.ab_loss(X, X, margin=math.nan), "margin must be a finite number, got nan"),
    "eps zero": (lambda: ops.vid_loss(X, C, X, eps=0), "eps must be a finite number above 0, got 0"),
    "bias shape": (lambda: ops.oh_margin(C, C[:2]), r"bias must have the shape of weight, \[3\], got \[2\]"),
    "weight shape": (lambda: ops.oh_margin(X, X), r"weight must be \[C\], got \[4, 3, 2, 2\]"),
}


@pytest.mark.parametrize(("call", "message"), TYPE_ERRORS.values(), ids=TYPE_ERRORS.keys())
def test_type_errors(call, message):
    with pytest.raises(TypeError, match=message):
        call()


@pytest.mark.parametrize(("call", "message"), VALUE_ERRORS.values(), ids=VALUE_ERRORS.keys())
def test_value_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
