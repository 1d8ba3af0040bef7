"""Hint, AB, OH and VID over backends, dtypes, shapes and layouts, compared with float64."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from backends import BACKENDS
from families import DTYPES, MAP_LAYOUTS, accumulator, channels_last, ids, needs_kernels, wave
from features_pointwise_table import LOSSES, ORACLE, assert_close, differentiate, expected, make
from pairing import paired

from sftn_fast import ops

# A vector, a sequence, volumes, one of everything; few pixels, many; runs with a ragged end; many channels.
SHAPES = [(1, 1), (5, 3), (2, 31, 4), (3, 7, 2, 3, 5), (1, 1, 1, 1), (1, 1, 70, 3), (2, 1, 3, 3), (4, 5, 1, 1)]
SHAPES += [(3, 8, 4, 4), (3, 17, 7, 7), (2, 3, 9, 8), (2, 2, 70, 61), (2, 300, 3, 3), (40, 24, 2, 2), (2, 4200, 1, 1)]
all_losses = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())


def check(loss, student, teacher, channel):
    actual = differentiate(loss, ops, student, teacher, channel)
    assert_close(actual, expected(loss, student, teacher, channel), student.dtype)
    return actual


@paired(backend=BACKENDS, dtype=DTYPES, loss=LOSSES)
def test_values_and_gradients(backend, loss, dtype):
    for shape in SHAPES:
        check(loss, *make(shape, dtype=dtype, device=backend.device))


@paired(backend=BACKENDS, dtype=DTYPES, loss=LOSSES)
def test_channels_last(backend, loss, dtype):
    """The gradients come in the layout of the maps."""
    for shape in ((2, 3, 2, 5), (3, 64, 3, 3), (2, 17, 9, 4), (70, 5, 2, 2), (1, 2051, 2, 2)):
        student, teacher, channel = make(shape, dtype=dtype, device=backend.device)
        student, teacher = channels_last(student), channels_last(teacher)
        result = check(loss, student, teacher, channel)
        if backend.fused:
            assert all(grad.is_contiguous(memory_format=torch.channels_last) for grad in result.grads[:1])


@paired(
    backend=BACKENDS,
    last=[False, True],
    loss=["oh", "vid", "hint"],
    shape=[(64, 32, 16, 16), (700, 100), (64, 100, 3, 3)],
)
def test_large_maps(backend, loss, shape, last):
    if backend.name == "emulated":
        shape = (9, *shape[1:])
    student, teacher, channel = make(shape, dtype=torch.float32, device=backend.device)
    if last and len(shape) == 4:
        student, teacher = channels_last(student), channels_last(teacher)
    check(LOSSES[loss], student, teacher, channel)


# ---- values that others computed ----


def stages(device):
    students = [1.5 * wave((4, 8, 4, 4), 0.31, 0.2 * i).to(device) for i in range(3)]
    teachers = [1.5 * wave((4, 8, 4, 4), 0.19, 0.3 * i, torch.cos).to(device) for i in range(3)]
    return students, teachers


def test_repdistillers_hint(backend):
    students, teachers = stages(backend.device)
    assert ops.hint_loss(students[0], teachers[0]).item() == pytest.approx(2.203703485311621, rel=1e-13)


def test_repdistillers_ab(backend):
    """RepDistiller's own loss has a factor of 3/1000 and a weight for each stage."""
    golden = [0.19590431899577115, 0.392650955597854, 0.7858076144383164]
    for student, teacher, weight, value in zip(*stages(backend.device), (0.25, 0.5, 1), golden, strict=True):
        assert weight * 3 / 1000 * ops.ab_loss(student, teacher).item() == pytest.approx(value, rel=1e-13)


def test_repdistillers_vid(backend):
    """RepDistiller's own loss includes the regressor, and starts with a variance of 5."""
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
    """Values at the margin, and a teacher of 0, which counts as inactive."""
    student = torch.tensor([[-1.0, 1.0, 0.0, 0.0, -2.0, 2.0]], device=backend.device, requires_grad=True)
    teacher = torch.tensor([[0.0, 1.0, 0.0, 1.0, 1.0, -1.0]], device=backend.device)
    total = ops.ab_loss(student, teacher)
    total.backward()
    assert total.item() == 0 + 0 + 1 + 1 + 9 + 9
    assert student.grad.tolist() == [[0, 0, 2, -2, -6, 6]]


def test_boundaries_of_oh(backend):
    """A student below a negative target does not count; a teacher at or below the margin has no gradient."""
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


@paired(backend=BACKENDS, dtype=[torch.float16, torch.bfloat16], loss=LOSSES)
def test_large_half_precision_is_finite(backend, loss, dtype):
    student, teacher, channel = make((2, 3, 8, 8), dtype=dtype, device=backend.device)
    check(loss, 2000 * student, 2000 * teacher, channel)


@pytest.mark.parametrize("scale", [1e-20, 1e-30, 1e-40])
def test_tiny_values_are_theirs_or_zero(backend, scale):
    """Squares that underflow may count as 0; gradients that are normal numbers may not."""
    student, teacher, _ = make((2, 3, 8, 8), dtype=torch.float32, device=backend.device)
    student, teacher = (scale * student).requires_grad_(), scale * teacher
    total = ops.hint_loss(student, teacher)
    total.backward(torch.tensor(384e5, device=backend.device))
    assert 0 <= total.item() < 1e-37
    torch.testing.assert_close(student.grad, 2e5 * (student - teacher).detach(), rtol=1e-3, atol=1.2e-38)


@needs_kernels
@pytest.mark.parametrize("kind", range(4), ids=["hint", "ab", "oh", "vid"])
@pytest.mark.parametrize("shape", [(3, 5), (2, 5, 7, 7), (3, 4, 40, 40)], **ids)
def test_both_at_once(kind, shape):
    """One pass leaves what two passes do."""
    student, teacher, channel = make(shape, dtype=torch.float32, device="cpu")
    channel = channel if kind > 1 else None
    scalars, wanted = (kind, 0.5, 0.25), (True, kind != 1, kind == 3)
    raw = torch.ops.sftn_fast
    total, stats = raw.features_pointwise_forward(student, teacher, channel, *scalars)
    grads = raw.features_pointwise_backward(torch.ones(()), student, teacher, channel, stats, *scalars, *wanted)
    both = raw.features_pointwise_both(student, teacher, channel, *scalars, *wanted)
    torch.testing.assert_close(both, [total, *grads], rtol=0, atol=0)
    torch.library.opcheck(raw.features_pointwise_both.default, (student, teacher, channel, *scalars, *wanted))


@paired(backend=BACKENDS, last=[False, True], where=["student", "teacher"], loss=LOSSES)
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


@paired(backend=BACKENDS, shape=[(0, 5), (0, 5, 3, 3), (4, 5, 0, 3)], dtype=DTYPES, loss=LOSSES)
def test_no_elements(backend, loss, dtype, shape):
    result = differentiate(loss, ops, *make(shape, dtype=dtype, device=backend.device))
    assert result.total.item() == 0
    assert result.student.shape == shape
    assert all(grad.count_nonzero() == 0 for grad in result.grads)


# ---- layouts and dtypes ----

LAYOUTS = {**MAP_LAYOUTS, "contiguous": lambda x: x}


@paired(
    backend=BACKENDS,
    dtype=[torch.float32, torch.bfloat16],
    student_layout=list(LAYOUTS),
    teacher_layout=["contiguous", "channels last", "channel slice"],
)
def test_layouts(backend, dtype, student_layout, teacher_layout):
    for name in ("ab", "oh", "vid"):
        student, teacher, channel = make((3, 12, 6, 6), dtype=dtype, device=backend.device)
        channel = torch.stack([channel, channel], 1)[:, 0]
        student, teacher = LAYOUTS[student_layout](student), LAYOUTS[teacher_layout](teacher)
        check(LOSSES[name], student, teacher, channel)


@paired(backend=BACKENDS, teacher_dtype=DTYPES, student_dtype=DTYPES)
def test_mixed_dtypes(backend, student_dtype, teacher_dtype):
    for name in ("hint", "oh", "vid"):
        student, teacher, channel = make((2, 5, 3, 3), dtype=torch.bfloat16, device=backend.device)
        student, teacher = student.to(student_dtype), teacher.to(teacher_dtype)
        for channel_dtype in DTYPES:
            of_dtype = channel.to(torch.bfloat16).to(channel_dtype)
            result = differentiate(LOSSES[name], ops, student, teacher, of_dtype)
            true = expected(LOSSES[name], student, teacher, of_dtype)
            taken = (student_dtype, teacher_dtype, *([] if name == "hint" else [channel_dtype]))
            assert result.total.dtype == accumulator(*taken)
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
    channel = torch.randn(6, generator=generator).to(accumulator(dtype))

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
