"""SP and PKT over backends, dtypes, shapes and layouts, compared with the authors' formulas in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from backends import BACKENDS
from families import (
    DTYPES,
    FAKES,
    MAP_LAYOUTS,
    accumulator,
    channels_last,
    ids,
    needs_kernels,
    on_threads,
    refusals,
    wave,
)
from pairing import paired
from precision import assert_rounded_once, rounding
from torch import Tensor

from bench.eager import relational as eager
from sftn_fast import ops
from sftn_fast.ops import _library, relational_similarity


@dataclass(frozen=True)
class Loss:
    shapes: list[tuple[tuple[int, ...], tuple[int, ...]]]  # of student and teacher
    run: Callable[[Any, Tensor, Tensor], Tensor]


LOSSES = {
    "sp": Loss(
        [
            ((1, 3), (1, 4)),
            ((2, 5, 3), (2, 7)),
            ((3, 4, 2, 2), (3, 6, 3, 1)),
            ((16, 3, 4, 5), (16, 8, 2, 2)),
            ((17, 33), (17, 12)),
            ((40, 2, 3, 2, 2), (40, 5, 1, 1)),
        ],
        lambda m, s, t: m.sp_loss(s, t),
    ),
    "pkt": Loss(
        [((1, 3), (1, 4)), ((2, 5), (2, 2)), ((16, 9), (16, 30)), ((33, 64), (33, 17)), ((50, 7), (50, 7))],
        lambda m, s, t: m.pkt_loss(s, t),
    ),
    "pkt-eps": Loss([((5, 6), (5, 4))], lambda m, s, t: m.pkt_loss(s, t, eps=0.25)),
}
oracle = SimpleNamespace(
    sp_loss=lambda s, t: eager.Similarity()(s.flatten(1), t.flatten(1)),
    pkt_loss=lambda s, t, eps=1e-7: eager.PKT()(s, t, eps),
)


@pytest.fixture(params=LOSSES.values(), ids=LOSSES.keys())
def loss(request) -> Loss:
    return request.param


def make(shapes, *, dtype=torch.float32, device="cpu", scale=1.0, mean=0.0, seed=0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    values = (scale * torch.randn(shape, generator=generator, dtype=torch.float64) + mean for shape in shapes)
    return [x.to(dtype).to(device) for x in values]


def differentiate(loss: Loss, module: Any, student: Tensor, teacher: Tensor) -> list[Tensor]:
    """Return the loss and both gradients, for a grad_output that is not one."""
    student, teacher = student.detach().requires_grad_(), teacher.detach().requires_grad_()
    value = loss.run(module, student, teacher)
    value.backward(torch.full_like(value, -1.7))
    return [value.detach(), student.grad, teacher.grad]


# Relative to the largest gradient. Half precision rounds once, when the gradient is stored.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 3e-5, torch.float16: 6e-4, torch.bfloat16: 4.5e-3}


def assert_close(actual: list[Tensor], expected: list[Tensor], dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    assert actual[0].dtype == accumulator(*dtypes)
    assert actual[0].shape == ()
    # The oracle itself is the authors' formula, which loses digits where student and teacher are close.
    torch.testing.assert_close(
        actual[0].double(), expected[0].double(), rtol=TOLERANCE[accumulator(*dtypes)], atol=1e-10
    )
    for grad, true, dtype in zip(actual[1:], expected[1:], dtypes, strict=True):
        assert grad.dtype == dtype
        assert grad.shape == true.shape
        bound = max(TOLERANCE[dtype], TOLERANCE[accumulator(*dtypes)]) * true.abs().max().item()
        bound += 6e-8 if dtype == torch.float16 else 1e-9  # half's smallest step
        torch.testing.assert_close(grad.double(), true.double(), rtol=0, atol=bound)


def check(loss: Loss, student: Tensor, teacher: Tensor) -> None:
    expected = differentiate(loss, oracle, student.double(), teacher.double())
    assert_close(differentiate(loss, ops, student, teacher), expected, (student.dtype, teacher.dtype))


# ---- values ----


@pytest.mark.parametrize("dtype", DTYPES, **ids)
def test_values_and_gradients(backend, loss, dtype):
    for shapes in loss.shapes:
        check(loss, *make(shapes, dtype=dtype, device=backend.device))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], **ids)
def test_many_rows(backend, dtype):
    batch = 140 if backend.name == "emulated" else 300
    for loss in (LOSSES["sp"], LOSSES["pkt"]):
        check(loss, *make(((batch, 20), (batch, 31)), dtype=dtype, device=backend.device))


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], **ids)
def test_one_op_of_pkt_agrees_with_several(monkeypatch, dtype):
    """The op that does all of PKT gives what matrix products and the other op do, also of rows without a direction."""
    shapes = ((16, 9), (16, 30)), ((33, 64), (33, 17)), ((50, 7), (50, 7)), ((64, 128), (64, 31)), ((97, 600), (97, 12))
    for pair in shapes:
        for bad in (None, 0.0, torch.nan, torch.inf):
            features = make(pair, dtype=dtype)
            for i, x in enumerate(features):
                if bad is not None:
                    x[-i] *= bad
            with monkeypatch.context() as patch:
                patch.setattr(relational_similarity, "_has_one_op", lambda *_: False)
                several = differentiate(LOSSES["pkt"], ops, *features)
            assert_close(differentiate(LOSSES["pkt"], ops, *features), several, (dtype, dtype))


@needs_kernels
@pytest.mark.parametrize("dtype", DTYPES, **ids)
@pytest.mark.parametrize("batch", [1, 2, 3, 11, 12, 13, 24, 47, 48, 49, 97, 150])
def test_gram_of_every_size(dtype, batch):
    """Tiles, panels, pieces and lanes end anywhere; rows may have gaps. Every entry is exact up to rounding."""
    gram = torch.ops.sftn_fast.gram
    for width in (0, 1, 15, 16, 17, 511, 512, 513, 2049, 5000):
        (rows,) = make(((batch, width + 3),), dtype=dtype)
        for x in (rows[:, :width], rows[:, 3:].contiguous(), rows[:1, :width].expand(batch, width)):
            result, exact = gram(x), x.double() @ x.double().t()
            assert result.dtype is (torch.float64 if dtype is torch.float64 else torch.float32)
            assert torch.equal(result, result.t())
            size = x.double().norm(dim=1)
            error = (result - exact).abs() / (size[:, None] * size).clamp(min=1e-30)
            assert error.max() < (1e-14 if dtype is torch.float64 else 1e-6)


@needs_kernels
def test_gram_keeps_rows_apart():
    """What is not finite stays in its row and column. Equal rows have equal entries, wherever they are."""
    (rows,) = make(((75, 700),))
    rows[60] = rows[3]
    clean = torch.ops.sftn_fast.gram(rows)
    others = torch.arange(75) != 20
    assert torch.equal(clean[60][others & (torch.arange(75) != 60)], clean[3][others & (torch.arange(75) != 60)])
    for bad in (torch.nan, torch.inf, -torch.inf):
        rows[20, 650] = bad
        gram = torch.ops.sftn_fast.gram(rows)
        assert not gram[20].isfinite().any()
        assert torch.equal(gram[others][:, others], clean[others][:, others])


def test_golden_values(backend):
    """The values are those of RepDistiller's classes in float64."""

    maps = wave((4, 6, 4, 4), 0.37, 0), wave((4, 8, 4, 4), 0.23, 0.5, torch.cos)
    vectors = wave((4, 6), 0.9, 0.3), wave((4, 8), 0.5, 0.1, torch.cos)
    for function, inputs, golden in (
        (ops.sp_loss, maps, 0.0211774776774002),
        (ops.pkt_loss, vectors, 0.14513043829739586),
    ):
        assert function(*inputs).item() == pytest.approx(golden, rel=1e-13)
        assert function(*(x.float() for x in inputs)).item() == pytest.approx(golden, rel=1e-6)


@paired(backend=BACKENDS, name=["sp", "pkt"], mean=[0.5, 3.0, 10.0])
def test_cosines_near_one(backend, name, mean):
    """Features with a mean larger than their differences, as after a ReLU, lose no more than rounding must.

    An entry of a normalised Gram matrix is off by `off` of its size, however little the entries differ. What follows is
    how much that is of the loss and of each row's gradient; a few percent of it is what is seen.
    """
    loss, batch, upstream = LOSSES[name], 32, 1.7
    for seed in range(4):
        student, teacher = make(((batch, 100), (batch, 130)), device=backend.device, scale=0.3, mean=mean, seed=seed)
        off = rounding(130, batch)
        true = differentiate(loss, oracle, student.double(), teacher.double())
        actual = differentiate(loss, ops, student, teacher)
        if name == "sp":  # a mean over rows of |Hs - Ht|^2, where |H| = 1
            allowed = 4 * off * ((true[0] * batch).sqrt() + off) / batch
        else:  # a mean over rows of sum p r^2 / 2, where r is how far p_t and p_s are apart, of their size
            allowed = 2 * off * ((2 * true[0] * batch).sqrt() + off) / batch
            if not backend.fused:  # there log p_t / p_s is of first order, and off by what the sums of rows are
                allowed += off / batch
        assert (actual[0].double() - true[0]).abs() <= allowed
        for features, grad, right in zip((student, teacher), actual[1:], true[1:], strict=True):
            rows = features.double()
            norm = rows.norm(dim=1)
            cosine = rows @ rows.t() / norm / norm[:, None]
            # Of SP's slopes, 8 / B^2 of the entries; of PKT's, 4 / B^2, across the row's own direction alone.
            sine = (1 - cosine.square()).clamp(min=0).sqrt().mean(dim=1)
            of_entries = 8.0 if name == "sp" else 4 * (sine + 4 * off)
            allowed = upstream * off * of_entries / (batch**2 * norm)
            assert ((grad.double() - right).norm(dim=1) <= allowed).all()


@pytest.mark.parametrize("name", ["sp", "pkt"])
def test_student_close_to_its_teacher(backend, name):
    """At the end of training, the loss is of second order in a small difference."""
    if not backend.fused and name == "pkt":
        pytest.skip("the authors' formula cancels")
    student, teacher = make(((24, 40), (24, 40)), device=backend.device)
    teacher = student + 0.01 * teacher
    actual = differentiate(LOSSES[name], ops, student, teacher)
    true = differentiate(LOSSES[name], oracle, student.double(), teacher.double())
    assert actual[0].item() == pytest.approx(true[0].item(), rel=1e-4)
    for grad, right in zip(actual[1:], true[1:], strict=True):
        assert (grad.double() - right).norm() < 1e-3 * right.norm()


@paired(backend=BACKENDS, name=["sp", "pkt"], dtype=[torch.float16, torch.bfloat16])
def test_half_precision_is_rounded_once(backend, name, dtype):
    student, teacher = make(((20, 64), (20, 50)), dtype=dtype, device=backend.device, mean=0.3)
    true = differentiate(LOSSES[name], oracle, student.double(), teacher.double())
    ours = differentiate(LOSSES[name], ops, student, teacher)
    assert ours[0].item() == pytest.approx(true[0].item(), rel=TOLERANCE[torch.float32])
    for grad, right in zip(ours[1:], true[1:], strict=True):
        assert_rounded_once(grad, right, TOLERANCE[torch.float32])


# ---- layouts and dtypes ----

LAYOUTS = {
    **MAP_LAYOUTS,
    "channels last, batch slice": lambda x: channels_last(x.repeat_interleave(2, 0))[::2],
    "transposed": lambda x: x.transpose(0, 3).contiguous().transpose(0, 3),
    "expanded": lambda x: x[:, :1].expand(x.shape),
}


@paired(backend=BACKENDS, dtype=[torch.float32, torch.bfloat16], layout=LAYOUTS)
def test_layouts_of_maps(backend, dtype, layout):
    student, teacher = make(((6, 5, 3, 4), (6, 4, 2, 3)), dtype=dtype, device=backend.device)
    check(LOSSES["sp"], layout(student), teacher)
    check(LOSSES["sp"], student, layout(teacher))


@pytest.mark.parametrize(
    "layout",
    [lambda x: x.t().contiguous().t(), lambda x: x.repeat_interleave(2, 1)[:, ::2], lambda x: x[:1].expand(x.shape)],
    ids=["transposed", "column step", "expanded"],
)
def test_layouts_of_vectors(backend, layout):
    student, teacher = make(((6, 5), (6, 4)), device=backend.device)
    for loss in (LOSSES["sp"], LOSSES["pkt"]):
        check(loss, layout(student), layout(teacher))


def test_gradients_lie_as_their_maps_do(backend):
    student, teacher = make(((6, 5, 3, 4), (6, 4, 2, 3)), device=backend.device)
    student = student.contiguous(memory_format=torch.channels_last).requires_grad_()
    ops.sp_loss(student, teacher).backward()
    assert student.grad.is_contiguous(memory_format=torch.channels_last)


@needs_kernels
def test_maps_are_not_copied():
    """In either layout, the gradient is the only allocation of the maps' size."""
    student, teacher = (x.contiguous(memory_format=torch.channels_last) for x in make(2 * [(4, 16, 32, 32)]))
    student.requires_grad_()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        ops.sp_loss(student, teacher).backward()
    allocated = sum(event.self_cpu_memory_usage for event in profile.events() if event.self_cpu_memory_usage > 0)
    assert allocated < 1.1 * 4 * student.numel()


@paired(backend=BACKENDS, teacher_dtype=DTYPES, student_dtype=DTYPES)
def test_mixed_dtypes(backend, student_dtype, teacher_dtype):
    student, teacher = make(((5, 6), (5, 7)), dtype=torch.bfloat16, device=backend.device)
    for loss in (LOSSES["sp"], LOSSES["pkt"]):
        check(loss, student.to(student_dtype), teacher.to(teacher_dtype))


# ---- what may be asked for ----


def test_gradients_only_where_asked(backend, loss):
    student, teacher = make(loss.shapes[-1], dtype=torch.float64, device=backend.device)
    full = differentiate(loss, ops, student, teacher)
    for wanted in ((True, False), (False, True)):
        leaves = [x.detach().requires_grad_(flag) for x, flag in zip((student, teacher), wanted, strict=True)]
        value = loss.run(ops, *leaves)
        value.backward(torch.full_like(value, -1.7))
        for leaf, flag, grad in zip(leaves, wanted, full[1:], strict=True):
            assert (leaf.grad is not None) == flag
            assert not flag or torch.equal(leaf.grad, grad)


def test_without_gradients(backend, loss):
    student, teacher = make(loss.shapes[-1], device=backend.device)
    student.requires_grad_()
    with torch.no_grad():
        quiet = loss.run(ops, student, teacher)
    assert not quiet.requires_grad
    assert quiet.item() == loss.run(ops, student, teacher).item()
    with torch.inference_mode():
        assert loss.run(ops, student, teacher).item() == quiet.item()


def test_gradcheck(backend, loss):
    student, teacher = make(loss.shapes[2 % len(loss.shapes)], dtype=torch.float64, device=backend.device)
    leaves = [student[:5].clone().requires_grad_(), teacher[:5].clone().requires_grad_()]
    assert torch.autograd.gradcheck(lambda s, t: loss.run(ops, s, t), leaves, eps=1e-6, atol=1e-7, fast_mode=True)


# ---- extremes ----


@pytest.mark.parametrize("dtype", DTYPES, **ids)
def test_empty_batch(backend, loss, dtype):
    shapes = [(0, *shape[1:]) for shape in loss.shapes[-1]]
    value, student_grad, teacher_grad = differentiate(loss, ops, *make(shapes, dtype=dtype, device=backend.device))
    assert value.item() == 0
    assert (student_grad.shape, teacher_grad.shape) == tuple(shapes)


def test_batch_of_one_and_no_features(backend):
    for loss in (LOSSES["sp"], LOSSES["pkt"]):
        for width in (3, 0):
            value, student_grad, teacher_grad = differentiate(
                loss, ops, *make(((1, width), (1, 4)), device=backend.device)
            )
            assert value.abs().item() < (1e-12 if width or loss is LOSSES["pkt"] else 2)
            assert student_grad.abs().sum() + teacher_grad.abs().sum() < 1e-6


@paired(backend=BACKENDS, side=[0, 1], dtype=DTYPES)
def test_rows_of_zeros(backend, dtype, side):
    """A sample with all features zero gives finite results, and its neighbours have the authors' gradients."""
    for loss in (LOSSES["sp"], LOSSES["pkt"]):
        features = make(((6, 5), (6, 7)), dtype=dtype, device=backend.device)
        features[side][2] = 0
        actual = differentiate(loss, ops, *features)
        expected = differentiate(loss, oracle, *(x.double() for x in features))
        assert all(x.isfinite().all() for x in actual)
        for x in (actual, expected):
            x[1 + side][2] = 0
        assert_close(actual, expected, (dtype, dtype))


@paired(backend=BACKENDS, side=[0, 1], size=[1e-45, 1e-41, 1e-38, 1e-30, 1e-22, 1e-12])
def test_pkt_of_rows_whose_squares_underflow(backend, side, size):
    """Small rows give the results of float64, which divides them by eps; a row of zeros beside them has no gradient."""
    features = make(((6, 5), (6, 7)), device=backend.device)
    features[side][2] *= size
    features[side][4] = 0
    actual = differentiate(LOSSES["pkt"], ops, *features)
    with ops.backend("reference"):
        expected = differentiate(LOSSES["pkt"], ops, *(x.double() for x in features))
    assert_close(actual, expected, (torch.float32, torch.float32))
    assert expected[1 + side][2].abs().max() > 100 or size > 1e-20
    assert (actual[1 + side][4] == 0).all()


def test_all_zeros(backend):
    for loss in (LOSSES["sp"], LOSSES["pkt"]):
        for dtype in DTYPES:
            zeros = torch.zeros(4, 3, dtype=dtype, device=backend.device)
            result = differentiate(loss, ops, zeros, zeros)
            assert all((x == 0).all() for x in result)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], **ids)
def test_features_below_eps(backend, dtype):
    """Rows of the Gram matrix with norms below 1e-12, which are divided by 1e-12, and some with norms just above."""
    student, teacher = make(((8, 5), (8, 7)), dtype=dtype, device=backend.device, scale=2e-7)
    student[::2] *= 4
    norms = (student.double() @ student.t().double()).norm(dim=1)
    assert norms.min() < 1e-12 < norms.max()
    actual = differentiate(LOSSES["sp"], ops, student, teacher)
    expected = differentiate(LOSSES["sp"], oracle, student.double(), teacher.double())
    assert_close(actual, expected, (dtype, dtype))


def test_large_half_precision(backend):
    """Norms of 320: float16 would overflow in the Gram matrix."""
    features = [x * (320 / x.norm(dim=1, keepdim=True)) for x in make(((12, 64), (12, 50)), device=backend.device)]
    for loss in (LOSSES["sp"], LOSSES["pkt"]):
        check(loss, *(x.half() for x in features))


@paired(backend=BACKENDS, side=[0, 1], bad=[torch.nan, torch.inf])
def test_pkt_of_bad_rows(backend, side, bad):
    """NaN counts as 0, as in the authors' code: the loss and all other rows' gradients are those of a row of zeros."""
    features = make(((6, 5), (6, 7)), device=backend.device)
    features[side][2] = 0
    expected = differentiate(LOSSES["pkt"], ops, *features)
    features[side][2, 1] = bad
    actual = differentiate(LOSSES["pkt"], ops, *features)
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b)
    assert (actual[1 + side][2] == 0).all()


@pytest.mark.parametrize("side", [0, 1])
def test_sp_propagates_nan(backend, side):
    features = make(((6, 5), (6, 7)), device=backend.device)
    features[side][2, 1] = torch.nan
    assert ops.sp_loss(*features).isnan()


def test_opposite_rows(backend):
    """A similarity of 0: only eps keeps the logarithm finite."""
    student, teacher = make(((3, 4), (3, 4)), dtype=torch.float64, device=backend.device)
    student[1], teacher[2] = -student[0], -teacher[1]
    for loss in (LOSSES["pkt"], LOSSES["pkt-eps"]):
        check(loss, student, teacher)
        assert all(x.isfinite().all() for x in differentiate(loss, ops, student.float(), teacher.float()))


def test_rounding_below_zero(backend):
    """Opposite rows with a cosine rounded below -1: no logarithm of a negative number, for any eps."""
    (half,) = make(((30, 5),), device=backend.device)
    student, teacher = torch.cat([half, -3 * half]).requires_grad_(), torch.cat([half, 7 * half])
    value = ops.pkt_loss(student, teacher, eps=1e-12)
    value.backward()
    assert value.isfinite()
    assert student.grad.isfinite().all()


# ---- conduct ----


@pytest.mark.parametrize("dtype", DTYPES, **ids)
def test_inputs_are_not_written_to(backend, loss, dtype):
    inputs = make(loss.shapes[-1], dtype=dtype, device=backend.device)
    inputs[0][0, 0] = torch.nan
    before = [x.clone() for x in inputs]
    differentiate(loss, ops, *inputs)
    assert all(a.equal(b) or (a.isnan() == b.isnan()).all() for a, b in zip(inputs, before, strict=True))


def test_same_inputs_same_bits(backend, loss):
    inputs = make(loss.shapes[-1], device=backend.device)
    first, second = (differentiate(loss, ops, *inputs) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@needs_kernels
@pytest.mark.parametrize("eps", [(), (1e-7,)], ids=["sp", "pkt"])
def test_threads_do_not_change_the_bits(eps):
    """This tests the kernels only: SP's last matrix product is PyTorch's."""
    features = make(((259, 30), (259, 4000)))
    inputs = [x @ x.t() for x in features]
    inputs += [x.norm(dim=1) for x in features] if eps else []
    op = torch.ops.sftn_fast.pkt_forward if eps else torch.ops.sftn_fast.sp_forward
    results = on_threads(lambda: (*op(*inputs, *eps, True, True), *map(torch.ops.sftn_fast.gram, features)))
    if eps:
        both = on_threads(lambda: torch.ops.sftn_fast.pkt_both(*features, *eps, True, True))
        assert all(torch.equal(a, b) for result in both[1:] for a, b in zip(result, both[0], strict=True))
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


@needs_kernels
@pytest.mark.parametrize("batch", [5, 20])
def test_addresses_do_not_change_the_bits(batch):
    """The bits of a kernel's result do not depend on the other requested results, nor on its address."""
    for seed in range(100):
        features = make(((batch, 6), (batch, 4)), dtype=torch.float64, seed=seed)
        inputs = [*(x @ x.t() for x in features), *(x.norm(dim=1) for x in features), 0.25]
        for op, arguments in ((torch.ops.sftn_fast.sp_forward, inputs[:2]), (torch.ops.sftn_fast.pkt_forward, inputs)):
            loss, student, teacher = op(*arguments, True, True)
            assert torch.equal(op(*arguments, False, False)[0], loss)
            assert torch.equal(op(*arguments, True, False)[1], student)
            assert torch.equal(op(*arguments, False, True)[2], teacher)
        both = torch.ops.sftn_fast.pkt_both
        loss, student, teacher = both(*features, 0.25, True, True)
        for wanted, grads in (((False, False), ()), ((True, False), (student,)), ((False, True), (teacher,))):
            for value, expected in zip(both(*features, 0.25, *wanted), (loss, *grads), strict=True):
                assert torch.equal(value, expected)


def test_autocast_leaves_the_loss_alone(backend, loss):
    inputs = make(loss.shapes[-1], device=backend.device)
    plain = differentiate(loss, ops, *inputs)
    with torch.autocast(backend.device, dtype=torch.bfloat16):
        cast = differentiate(loss, ops, *inputs) if backend.fused else [loss.run(ops, *inputs)]
    assert all(torch.equal(a, b) for a, b in zip(cast, plain, strict=False))


# ---- compilers ----


@needs_kernels
@pytest.mark.parametrize("grads", [(True, False), (False, True), (True, True), (False, False)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], **ids)
def test_opcheck(dtype, grads):
    student, teacher = make(((5, 6), (5, 7)), dtype=dtype)
    grams, norms = [x @ x.t() for x in (student, teacher)], [x.norm(dim=1) for x in (student, teacher)]
    torch.library.opcheck(torch.ops.sftn_fast.gram.default, (student,), test_utils=FAKES)
    torch.library.opcheck(torch.ops.sftn_fast.sp_forward.default, (*grams, *grads), test_utils=FAKES)
    torch.library.opcheck(torch.ops.sftn_fast.pkt_forward.default, (*grams, *norms, 1e-7, *grads), test_utils=FAKES)
    torch.library.opcheck(torch.ops.sftn_fast.pkt_both.default, (student, teacher, 1e-7, *grads), test_utils=FAKES)


@pytest.mark.parametrize("kind", ["fused", "reference"])
def test_traced_whole_under_autocast(loss, kind):
    """No graph break, and the values of the eager call; channels last for maps. `test_compile.py` has no autocast."""
    if kind == "fused" and not _library.CPU.loaded:
        pytest.skip(f"no CPU kernels: {_library.CPU.error}")
    inputs = make(loss.shapes[-1])
    if loss is LOSSES["sp"]:
        inputs = [x.contiguous(memory_format=torch.channels_last) for x in make(((6, 5, 3, 4), (6, 4, 2, 3)))]
    torch._dynamo.reset()
    compiled = torch.compile(lambda s, t: loss.run(ops, s, t), fullgraph=True, backend="aot_eager")
    traced = Loss([], lambda _, s, t: compiled(s, t))
    with ops.backend(kind), torch.autocast("cpu", torch.bfloat16):
        for a, b in zip(differentiate(traced, ops, *inputs), differentiate(loss, ops, *inputs), strict=True):
            torch.testing.assert_close(a, b)


# ---- errors ----

X = torch.zeros(4, 3)
TYPE_ERRORS = {
    "sp list": (lambda: ops.sp_loss([[0.0]], X), "student_features must be a tensor, got list"),
    "sp integers": (lambda: ops.sp_loss(X, X.long()), "teacher_features must be float16, .* got torch.int64"),
    "pkt array": (lambda: ops.pkt_loss(X, X.numpy()), "teacher must be a tensor, got ndarray"),
    "pkt complex": (lambda: ops.pkt_loss(X.cfloat(), X), "student must be float16, .* got torch.complex64"),
    "eps text": (lambda: ops.pkt_loss(X, X, eps="1"), "eps must be a number, got str"),
}
VALUE_ERRORS = {
    "sp one dimension": (lambda: ops.sp_loss(X[0], X), r"student_features must be \[B, ...\], got \[3\]"),
    "sp batch": (
        lambda: ops.sp_loss(X, X[:2]),
        r"teacher_features must have the batch size of student_features, 4, got 2: \[2, 3\]",
    ),
    "sp device": (
        lambda: ops.sp_loss(X, X.to("meta")),
        "teacher_features must be on the device of student_features, cpu, got meta",
    ),
    "pkt maps": (lambda: ops.pkt_loss(X, X[..., None]), r"teacher must be \[B, D\], got \[4, 3, 1\]"),
    "pkt batch": (lambda: ops.pkt_loss(X[1:], X), "teacher must have the batch size of student, 3, got 4"),
    "eps zero": (lambda: ops.pkt_loss(X, X, eps=0.0), "eps must be a finite number above 0, got 0.0"),
    "eps nan": (lambda: ops.pkt_loss(X, X, eps=float("nan")), "eps must be a finite number above 0, got nan"),
}


test_type_errors = refusals(TypeError, TYPE_ERRORS)
test_value_errors = refusals(ValueError, VALUE_ERRORS)
