"""Attention and factor transfer over backends, dtypes, shapes and layouts, compared with float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from backends import BACKENDS
from families import (
    DTYPES,
    FAKES,
    MAP_LAYOUTS,
    channels_last,
    ids,
    needs_kernels,
    on_threads,
    refusals,
    shapes_for,
    wave,
)
from pairing import paired
from precision import assert_rounded_once, rounding
from torch import Tensor

from bench.cases.case import step as bench_step
from bench.measure import peak_memory
from sftn_fast import ops

# ---- the authors' formulas, in float64 ----


def attention(features: Tensor, p: float = 2) -> Tensor:
    return F.normalize(features.abs().pow(p).mean(1).flatten(1))


class Oracle:
    @staticmethod
    def at_loss(student, teacher, *, p=2):
        student, teacher = alike(student, teacher)
        return (attention(student, p) - attention(teacher, p)).square().mean()

    @staticmethod
    def ft_loss(student, teacher, *, variant="repdistiller"):
        student, teacher = alike(student, teacher)
        if variant == "paper":
            return F.l1_loss(F.normalize(student.flatten(1)), F.normalize(teacher.flatten(1)))
        return F.l1_loss(attention(student), attention(teacher))


def alike(student, teacher):
    if student.shape[2:].numel() > teacher.shape[2:].numel():
        return F.adaptive_avg_pool2d(student, teacher.shape[2:]), teacher
    return student, F.adaptive_avg_pool2d(teacher, student.shape[2:])


@dataclass(frozen=True)
class Loss:
    run: Callable[[Any, Tensor, Tensor], Tensor]
    same_channels: bool = False


LOSSES = {
    "at": Loss(lambda m, s, t: m.at_loss(s, t)),
    "at-p0.5": Loss(lambda m, s, t: m.at_loss(s, t, p=0.5)),
    "at-p1": Loss(lambda m, s, t: m.at_loss(s, t, p=1)),
    "at-p2.5": Loss(lambda m, s, t: m.at_loss(s, t, p=2.5)),
    "at-p3": Loss(lambda m, s, t: m.at_loss(s, t, p=3)),
    "at-p4": Loss(lambda m, s, t: m.at_loss(s, t, p=4)),
    "ft": Loss(lambda m, s, t: m.ft_loss(s, t)),
    "ft-paper": Loss(lambda m, s, t: m.ft_loss(s, t, variant="paper"), same_channels=True),
}
every_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())


@dataclass
class Result:
    loss: Tensor
    student: Tensor
    teacher: Tensor

    @property
    def grads(self) -> tuple[Tensor, Tensor]:
        return self.student, self.teacher


UPSTREAM = -1.7


def differentiate(loss: Loss, module: Any, student: Tensor, teacher: Tensor) -> Result:
    student, teacher = student.detach().requires_grad_(), teacher.detach().requires_grad_()
    value = loss.run(module, student, teacher)
    value.backward(torch.full_like(value, UPSTREAM))
    return Result(value.detach(), student.grad, teacher.grad)


def make(loss, shape, teacher_shape=None, *, dtype=torch.float32, device="cpu", seed=0) -> tuple[Tensor, Tensor]:
    """Return reproducible maps ``[N, C, H, W]``; the teacher has other channels if the loss allows it."""
    generator = torch.Generator().manual_seed(seed)
    n, c, h, w = shape
    if teacher_shape is None:
        teacher_shape = shape if loss.same_channels else (n, c + 3, h, w)
    maps = (torch.randn(size, generator=generator, dtype=torch.float64) for size in (shape, teacher_shape))
    student, teacher = (x.to(dtype).to(device) for x in maps)
    return student, teacher


# Relative to the largest gradient. Half precision rounds once, when the gradient is stored.
TOLERANCE = {torch.float64: 1e-11, torch.float32: 3e-5, torch.float16: 6e-4, torch.bfloat16: 4.5e-3}


def assert_close(actual: Result, expected: Result, dtype: torch.dtype, slack: float = 0) -> None:
    exact = dtype == torch.float64
    assert actual.loss.dtype == (torch.float64 if exact else torch.float32)
    assert actual.loss.shape == ()
    tolerance = 1e-12 if exact else 1e-5
    torch.testing.assert_close(actual.loss.double(), expected.loss, rtol=tolerance, atol=tolerance * 1e-2 + slack)
    for grad, true in zip(actual.grads, expected.grads, strict=True):
        assert grad.dtype == dtype
        assert grad.shape == true.shape
        bound = TOLERANCE[dtype] * (true.abs().max().item() if true.numel() else 0)
        bound += slack + (6e-8 if dtype == torch.float16 else 1e-15)  # half's smallest step
        torch.testing.assert_close(grad.double(), true, rtol=0, atol=bound)


def check(loss, student, teacher, slack=0.0):
    expected = differentiate(loss, Oracle, student.double(), teacher.double())
    assert_close(differentiate(loss, ops, student, teacher), expected, student.dtype, slack)


# ---- values ----

# Few pixels and many channels, many and few, neither a multiple of any vector.
SHAPES = [(3, 5, 4, 4), (2, 300, 2, 2), (2, 33, 7, 7), (1, 1, 3, 5), (2, 3, 1, 9), (2, 4, 33, 35), (3, 64, 8, 8)]


@paired(backend=BACKENDS, dtype=DTYPES, loss=LOSSES)
def test_values_and_gradients(backend, loss, dtype):
    for shape in shapes_for(backend, SHAPES):
        check(loss, *make(loss, shape, dtype=dtype, device=backend.device))


@paired(backend=BACKENDS, dtype=DTYPES, loss=LOSSES)
def test_channels_last(backend, loss, dtype):
    for shape in shapes_for(backend, SHAPES):
        check(loss, *map(channels_last, make(loss, shape, dtype=dtype, device=backend.device)))
    for shape in SHAPES[:2]:  # each map is reduced in its own layout, or copied: the sizes don't matter
        student, teacher = make(loss, shape, dtype=dtype, device=backend.device)
        check(loss, channels_last(student), teacher)
        check(loss, student, channels_last(teacher))


@paired(
    backend=BACKENDS,
    shape=[(2, 64, 56, 56), (3, 2048, 4, 4), (2, 2048, 7, 7), (300, 8, 4, 4)],
    dtype=[torch.float32, torch.bfloat16],
    name=["at", "ft-paper"],
)
def test_large(backend, name, dtype, shape):
    if backend.name == "emulated":
        shape = tuple(min(size, most) for size, most in zip(shape, (40, 700, 40, 40), strict=True))
    student, teacher = make(LOSSES[name], shape, dtype=dtype, device=backend.device)
    check(LOSSES[name], student, teacher)
    check(LOSSES[name], channels_last(student), channels_last(teacher))


GOLDEN = {  # values of RepDistiller's classes in float64
    "at": (LOSSES["at"], wave((4, 6, 4, 4), 0.37), wave((4, 8, 4, 4), 0.23, 0.5, torch.cos), 0.005261305153243119),
    "at, pooled": (
        LOSSES["at"],
        wave((4, 6, 4, 4), 0.37),
        wave((4, 8, 2, 2), 0.23, 0.5, torch.cos),
        0.007992679371332212,
    ),
    "ft": (
        LOSSES["ft"],
        1.5 * wave((4, 8, 4, 4), 0.31),
        1.5 * wave((4, 8, 4, 4), 0.19, 0, torch.cos),
        0.12357702022109802,
    ),
}


@pytest.mark.parametrize(("loss", "student", "teacher", "golden"), GOLDEN.values(), ids=GOLDEN.keys())
def test_repdistillers_own_value(backend, loss, student, teacher, golden):
    student, teacher = student.to(backend.device), teacher.to(backend.device)
    assert loss.run(ops, student, teacher).item() == pytest.approx(golden, rel=1e-13)
    assert loss.run(ops, student.float(), teacher.float()).item() == pytest.approx(golden, rel=1e-5)


@paired(
    backend=BACKENDS,
    sizes=[((8, 6), (4, 3)), ((4, 4), (1, 1)), ((7, 7), (5, 3)), ((3, 9), (3, 4))],
    dtype=DTYPES,
    name=["at", "ft", "ft-paper"],
)
def test_the_larger_map_is_pooled(backend, name, dtype, sizes):
    large, small = ((2, 5, *size) for size in sizes)
    for shape, teacher_shape in ((large, small), (small, large)):
        student, teacher = make(LOSSES[name], shape, teacher_shape, dtype=dtype, device=backend.device)
        slack = 1e-6 if small[2:] == (1, 1) else 0.0  # both attentions are 1, but for rounding
        check(LOSSES[name], student, teacher, slack)
        check(LOSSES[name], channels_last(student), channels_last(teacher), slack)


@paired(backend=BACKENDS, dtype=DTYPES, name=["at", "ft", "at-p1"])
def test_one_pixel(backend, name, dtype):
    """The attention of one pixel is always 1: no loss and no gradient, up to the last bit."""
    student, teacher = make(LOSSES[name], (3, 70, 1, 1), dtype=dtype, device=backend.device)
    result = differentiate(LOSSES[name], ops, student, teacher)
    assert abs(result.loss.item()) < 3e-7
    assert all(grad.abs().max() < 3e-7 for grad in result.grads)


@paired(backend=BACKENDS, teacher_dtype=DTYPES, student_dtype=DTYPES, name=["at", "ft-paper"])
def test_mixed_dtypes(backend, name, student_dtype, teacher_dtype):
    student, teacher = make(LOSSES[name], (2, 5, 4, 4), dtype=torch.bfloat16, device=backend.device)
    true = differentiate(LOSSES[name], Oracle, student.double(), teacher.double())
    actual = differentiate(LOSSES[name], ops, student.to(student_dtype), teacher.to(teacher_dtype))
    double = torch.float64 in (student_dtype, teacher_dtype)
    assert actual.loss.dtype == (torch.float64 if double else torch.float32)
    assert actual.loss.item() == pytest.approx(true.loss.item(), rel=1e-12 if double else 1e-5)
    for grad, of, dtype in zip(actual.grads, true.grads, (student_dtype, teacher_dtype), strict=True):
        assert grad.dtype == dtype
        torch.testing.assert_close(grad.double(), of, rtol=0, atol=5e-3 * of.abs().max().item())


# ---- layouts ----


@paired(backend=BACKENDS, name=["at", "ft", "ft-paper"], dtype=[torch.float32, torch.bfloat16], layout=MAP_LAYOUTS)
def test_layouts(backend, name, dtype, layout):
    student, teacher = make(LOSSES[name], (3, 8, 5, 4), dtype=dtype, device=backend.device)
    check(LOSSES[name], layout(student), layout(teacher))
    check(LOSSES[name], layout(student), teacher)


@needs_kernels
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], **ids)
def test_dense_maps_are_not_copied(memory_format):
    """Only the gradient and the attention maps are allocated, and the gradient has its map's layout."""
    size = (8, 64, 16, 16)
    student, teacher = (torch.randn(size).contiguous(memory_format=memory_format) for _ in range(2))
    student.requires_grad_()
    step = bench_step([student], lambda: ops.at_loss(student, teacher))
    with ops.backend("fused"):
        assert peak_memory(step) < 1.1 * student.numel() * 4
    assert student.grad.stride() == student.stride()


# ---- gradients ----


@every_loss
def test_gradients_only_where_asked(backend, loss):
    student, teacher = make(loss, (3, 4, 3, 3), dtype=torch.float64, device=backend.device)
    full = differentiate(loss, Oracle, student, teacher)
    for wanted in ((True, False), (False, True)):
        leaves = [x.detach().requires_grad_(flag) for x, flag in zip((student, teacher), wanted, strict=True)]
        (UPSTREAM * loss.run(ops, *leaves)).backward()
        for leaf, flag, grad in zip(leaves, wanted, full.grads, strict=True):
            assert (leaf.grad is not None) == flag
            if flag:
                torch.testing.assert_close(leaf.grad, grad)


def test_without_gradients(backend):
    student, teacher = make(LOSSES["at"], (3, 4, 3, 3), device=backend.device)
    student.requires_grad_()
    loud = ops.at_loss(student, teacher).item()
    with torch.no_grad():
        quiet = ops.at_loss(student, teacher)
    assert not quiet.requires_grad
    assert quiet.item() == loud
    with torch.inference_mode():
        assert ops.at_loss(student, teacher).item() == loud


@pytest.mark.parametrize(
    ("name", "teacher_size"), [*((name, (3, 3)) for name in LOSSES), ("at", (6, 3)), ("ft-paper", (6, 3))], **ids
)
def test_gradcheck(backend, name, teacher_size):
    """Every loss on maps of one size; pooling, which is an op of its own, with one loss of each kind."""
    loss, shape = LOSSES[name], (2, 3, 3, 3)
    teacher_shape = (2, 3 if loss.same_channels else 2, *teacher_size)
    leaves = [x.requires_grad_() for x in make(loss, shape, teacher_shape, dtype=torch.float64, device=backend.device)]
    assert torch.autograd.gradcheck(lambda s, t: loss.run(ops, s, t), leaves, eps=1e-7, atol=1e-6, fast_mode=True)


@paired(backend=BACKENDS, dtype=[torch.float16, torch.bfloat16], name=["at", "ft", "ft-paper"])
def test_half_precision_is_rounded_once(backend, name, dtype):
    loss = LOSSES[name]
    student, teacher = make(loss, (8, 32, 8, 8), dtype=dtype, device=backend.device)
    true = differentiate(loss, Oracle, student.double(), teacher.double())
    ours = differentiate(loss, ops, student, teacher)
    off = rounding(32, 8 * 8)
    # A difference of attention maps, each with a relative error of `off`.
    assert ours.loss.item() == pytest.approx(true.loss.item(), rel=8 * off)
    for our_grad, grad in zip(ours.grads, true.grads, strict=True):
        assert_rounded_once(our_grad, grad, 8 * off)


# ---- extremes ----


@paired(backend=BACKENDS, dtype=DTYPES, loss=LOSSES)
def test_large_maps(backend, loss, dtype):
    """Norms far beyond the range of half precision."""
    student, teacher = make(loss, (2, 40, 5, 4), dtype=dtype, device=backend.device)
    result = differentiate(loss, ops, student * 300, teacher * 3000)
    assert result.loss.isfinite()
    assert all(grad.isfinite().all() for grad in result.grads)
    true = differentiate(loss, Oracle, (student * 300).double(), (teacher * 3000).double())
    assert_close(result, true, dtype)


@paired(backend=BACKENDS, layout={"contiguous": torch.clone, "last": channels_last}, dtype=DTYPES, loss=LOSSES)
def test_zeros(backend, loss, dtype, layout):
    """A map of zeros has a norm of 1e-12, and a zero among other values has no gradient; neither gives a NaN."""
    student, teacher = make(loss, (3, 6, 4, 4), dtype=dtype, device=backend.device)
    student[0], teacher[1] = 0, 0
    student[2, :, 1:3], teacher[2, 2:] = 0, 0
    result = differentiate(loss, ops, layout(student), layout(teacher))
    assert result.loss.item() > 0
    assert all(not grad.isnan().any() for grad in result.grads)
    if loss.same_channels:  # the slope there is 1 / 1e-12
        check(loss, layout(student[2:]), layout(teacher[2:]))
        return
    assert result.student[0].count_nonzero() == 0
    assert result.teacher[1].count_nonzero() == 0
    assert result.student[2, :, 1:3].count_nonzero() == 0


@every_loss
def test_a_factor_of_zeros(backend, loss):
    zero = torch.zeros(2, 3, 2, 2, device=backend.device)
    result = differentiate(loss, ops, zero, zero)
    assert result.loss.item() == 0
    assert all(grad.count_nonzero() == 0 for grad in result.grads)


@every_loss
def test_below_the_norms_floor(backend, loss):
    """A norm below 1e-12 is constant: the gradient is that of a division by a constant."""
    student, teacher = make(loss, (2, 3, 3, 3), dtype=torch.float64, device=backend.device)
    power = {"at-p0.5": 0.5, "at-p1": 1, "at-p2.5": 2.5, "at-p3": 3, "at-p4": 4, "ft-paper": 1}
    name = next(key for key, value in LOSSES.items() if value is loss)
    check(loss, student * 1e-13 ** (1 / power.get(name, 2)), teacher)


@every_loss
def test_equal_maps(backend, loss):
    student, _ = make(loss, (3, 6, 4, 4), device=backend.device)
    result = differentiate(loss, ops, student, student.clone())
    assert result.loss.item() == 0
    assert all(grad.count_nonzero() == 0 for grad in result.grads)


@paired(backend=BACKENDS, dtype=DTYPES, where={"student": 0, "teacher": 1}, loss=LOSSES)
def test_nan_propagates(backend, loss, where, dtype):
    maps = make(loss, (2, 5, 4, 4), dtype=dtype, device=backend.device)
    maps[where][1, 2, 3, 1] = torch.nan
    result = differentiate(loss, ops, *maps)
    assert result.loss.isnan()
    assert result.grads[where][1].isnan().any()
    assert not result.student[0].isnan().any()


@paired(backend=BACKENDS, dtype=DTYPES, loss=LOSSES)
def test_empty_batch(backend, loss, dtype):
    for teacher_size in ((4, 4), (2, 2), (3, 3)):
        student, teacher = make(loss, (0, 5, 4, 4), (0, 5, *teacher_size), dtype=dtype, device=backend.device)
        result = differentiate(loss, ops, student, teacher)
        assert result.loss.item() == 0
        assert result.student.shape == (0, 5, 4, 4)
        assert result.teacher.shape == (0, 5, *teacher_size)
        assert result.student.dtype == dtype


# ---- contracts ----


@paired(backend=BACKENDS, dtype=DTYPES, loss=LOSSES)
def test_inputs_are_not_written_to(backend, loss, dtype):
    maps = make(loss, (2, 5, 4, 4), dtype=dtype, device=backend.device)
    before = [x.clone() for x in maps]
    differentiate(loss, ops, *maps)
    assert all(torch.equal(a, b) for a, b in zip(maps, before, strict=True))


@every_loss
def test_same_inputs_same_bits(backend, loss):
    maps = make(loss, (24, 20, 7, 7), device=backend.device)
    first, second = (differentiate(loss, ops, *maps) for _ in range(2))
    assert first.loss.item() == second.loss.item()
    assert all(torch.equal(a, b) for a, b in zip(first.grads, second.grads, strict=True))


@every_loss
def test_threads_do_not_change_the_bits(loss):
    maps = make(loss, (257, 40, 9, 9))
    results = on_threads(lambda: differentiate(loss, ops, *maps))
    for result in results[1:]:
        assert result.loss.item() == results[0].loss.item()
        assert all(torch.equal(a, b) for a, b in zip(result.grads, results[0].grads, strict=True))


@paired(backend=BACKENDS, teacher_size=[(4, 4), (2, 2), (3, 3)], name=["at", "ft-paper"])
def test_autocast_leaves_the_loss_alone(backend, name, teacher_size):
    maps = make(LOSSES[name], (3, 5, 4, 4), (3, 5, *teacher_size), device=backend.device)
    plain = differentiate(LOSSES[name], ops, *maps)
    student, teacher = (x.requires_grad_() for x in maps)
    with torch.autocast(backend.device, dtype=torch.bfloat16):
        loss = LOSSES[name].run(ops, student, teacher)
    loss.backward(torch.full_like(loss, UPSTREAM))
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, plain.loss)
    torch.testing.assert_close((student.grad, teacher.grad), plain.grads)


# ---- compilers ----


@needs_kernels
@pytest.mark.parametrize(("power", "absolute"), [(2.0, False), (0.0, True)])
@pytest.mark.parametrize("wanted", [(True, True), (True, False), (False, True), (False, False)])
def test_opcheck(power, absolute, wanted):
    """Both layouts and every choice of gradients; `test_compile.py` has the dtypes."""
    student, teacher = make(LOSSES["ft-paper"], (2, 4, 3, 3))
    namespace = torch.ops.sftn_fast
    for maps in ((student, teacher), (channels_last(student), channels_last(teacher))):
        torch.library.opcheck(namespace.features_attention_forward.default, (*maps, power, absolute), test_utils=FAKES)
        loss, saved, stats = namespace.features_attention_forward(*maps, power, absolute)
        backward = (torch.ones_like(loss), *maps, saved, stats, power, absolute, *wanted)
        torch.library.opcheck(namespace.features_attention_backward.default, backward, test_utils=FAKES)


@pytest.mark.parametrize(("name", "teacher_size"), [("at", (3, 3)), ("at-p3", (4, 4)), ("ft-paper", (2, 2))], **ids)
def test_traced_whole(backend, name, teacher_size):
    """No graph break, and the values of the eager call: what the table of `test_compile.py` does not have."""
    if backend.name == "emulated":
        pytest.skip("its ops have no fakes")
    torch._dynamo.reset()
    maps = make(LOSSES[name], (3, 5, 4, 4), (3, 5, *teacher_size), device=backend.device)
    compiled = torch.compile(lambda m, s, t: LOSSES[name].run(m, s, t), fullgraph=True, backend="aot_eager")
    eager, traced = (differentiate(loss, ops, *maps) for loss in (LOSSES[name], Loss(compiled)))
    torch.testing.assert_close(traced.loss, eager.loss)
    torch.testing.assert_close(traced.grads, eager.grads)


# ---- errors ----

X = torch.zeros(2, 3, 4, 4)

TYPE_ERRORS = {
    "a list": (lambda: ops.at_loss([0.0], X), "student_features must be a tensor, got list"),
    "none": (lambda: ops.ft_loss(X, None), "teacher_factor must be a tensor, got NoneType"),
    "integers": (lambda: ops.at_loss(X, X.long()), "teacher_features must be float16, bfloat16, .* got torch.int64"),
    "complex": (lambda: ops.ft_loss(X.cfloat(), X), "student_factor must be float16, .* got torch.complex64"),
    "p text": (lambda: ops.at_loss(X, X, p="2"), "p must be a number, got str"),
    "p learned": (
        lambda: ops.at_loss(X, X, p=torch.ones((), requires_grad=True)),
        "p must be a number: the loss has no",
    ),
}

VALUE_ERRORS = {
    "three dimensions": (
        lambda: ops.at_loss(X[0], X[0]),
        r"student_features must be \[N, C, H, W\] with C, H and W at least 1, got \[3, 4, 4\]",
    ),
    "no channels": (lambda: ops.ft_loss(X, X[:, :0]), r"teacher_factor must be \[N, C, H, W\] .* got \[2, 0, 4, 4\]"),
    "no pixels": (lambda: ops.at_loss(X[..., :0], X), r"student_features must be .* got \[2, 3, 4, 0\]"),
    "batch": (lambda: ops.at_loss(X, X[:1]), "teacher_features must have the batch size of student_features, 2, got 1"),
    "device": (
        lambda: ops.at_loss(X, X.to("meta")),
        "teacher_features must be on the device of student_features, cpu, got meta",
    ),
    "neither larger": (
        lambda: ops.at_loss(X, X.view(2, 3, 8, 2)),
        "teacher_features must be as large as student_features, 4 x 4, or larger or smaller both ways, got 8 x 2",
    ),
    "p zero": (lambda: ops.at_loss(X, X, p=0), "p must be a finite number above 0, got 0"),
    "p nan": (lambda: ops.at_loss(X, X, p=math.nan), "p must be a finite number above 0, got nan"),
    "variant": (
        lambda: ops.ft_loss(X, X, variant="authors"),
        "variant must be one of 'repdistiller', 'paper', got 'authors'",
    ),
    "channels of the paper": (
        lambda: ops.ft_loss(X, X[:, :2], variant="paper"),
        "teacher_factor must have the channels of student_factor, 3, for variant 'paper', got 2",
    ),
}


test_type_errors = refusals(TypeError, TYPE_ERRORS)
test_value_errors = refusals(ValueError, VALUE_ERRORS)
