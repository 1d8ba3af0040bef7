"""Contrastive distillation that scores every bank row: the same results as with gathered negatives."""

from __future__ import annotations

import copy
import importlib
import math

import pytest
import torch
from families import DTYPES, ids, on_threads
from test_contrastive import check, make, run

from sftn_fast import ops

module = importlib.import_module("sftn_fast.ops.contrastive")


pytestmark = pytest.mark.parametrize("backend", ["cpu", "emulated"], indirect=True)


choose = module._dense


@pytest.fixture(autouse=True)
def dense(backend, monkeypatch):
    """Score every row, at any cost."""
    monkeypatch.setattr(module, "_dense", lambda *sizes: True)


def gathered(monkeypatch, *arguments):
    with monkeypatch.context() as patch:
        patch.setattr(module, "_dense", lambda *sizes: False)
        return run(*arguments)


@pytest.mark.parametrize("bank_dtype", DTYPES, **ids)
@pytest.mark.parametrize("dtype", DTYPES, **ids)
def test_dtypes(dtype, bank_dtype):
    check(make(n=150, k=90, b=19, dtype=dtype, bank_dtype=bank_dtype), grad_output=-1.7)


@pytest.mark.parametrize("d", [1, 2, 15, 16, 31, 64, 127, 128, 130, 515])
@pytest.mark.parametrize("bank_dtype", [torch.float32, torch.float16, torch.float64], **ids)
def test_widths(d, bank_dtype):
    check(make(n=100, b=3, k=60, d=d, bank_dtype=bank_dtype))


SIZES = [(1, 1, 1), (2, 1, 1), (47, 16, 40), (48, 17, 40), (49, 15, 7), (9, 4, 3000), (5000, 33, 3000), (300, 200, 20)]


@pytest.mark.parametrize(("n", "b", "k"), SIZES)
def test_sizes(backend, n, b, k):
    if backend.name == "emulated" and n * b > 10_000:
        pytest.skip("too large")
    check(make(n=n, b=b, k=k))


@pytest.mark.parametrize("order", ["descending", "random", "repeats", "one row", "the positive", "one falls"])
@pytest.mark.parametrize("width", [torch.int64, torch.int32], **ids)
def test_negatives_in_any_order(order, width):
    student, teacher, index, negatives, memory = make(n=2000, b=4, k=300)
    generator = torch.Generator().manual_seed(1)
    fallen = negatives.clone()
    fallen[2, -1] = 0
    negatives = {
        "descending": negatives.flip(1),
        "random": negatives[:, torch.randperm(300, generator=generator)],
        "repeats": torch.randint(2000, (4, 300), generator=generator) // 7,
        "one row": torch.full_like(negatives, 1999),
        "the positive": index[:, None].expand(4, 300),
        "one falls": fallen,
    }[order]
    check((student, teacher, index, negatives.to(width), memory))


def test_as_gathered(backend, monkeypatch):
    size = {"n": 3000, "b": 40, "k": 4000} if backend.name == "cpu" else {"n": 300, "b": 4, "k": 400}
    *inputs, memory = make(**size, d=128)
    true, actual = gathered(monkeypatch, *inputs, copy.deepcopy(memory)), run(*inputs, copy.deepcopy(memory))
    for a, b in zip(actual.tensors, true.tensors, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_strides():
    student, teacher, index, negatives, memory = make(n=60, b=6, k=37)
    dense = run(student, teacher, index, negatives, copy.deepcopy(memory))
    wide = torch.cat([negatives, negatives + 1000], 1)
    view = run(student.t().contiguous().t(), teacher, index, wide[:, :37], copy.deepcopy(memory))
    assert all(torch.equal(a, b) for a, b in zip(view.tensors, dense.tensors, strict=True))
    check((student, teacher, index, negatives[:1].expand(6, 37), memory))


def test_gradcheck():
    student, teacher, index, negatives, memory = make(
        12, 3, 5, 4, dtype=torch.float64, bank_dtype=torch.float64, temperature=0.5
    )
    leaves = [student.requires_grad_(), teacher.requires_grad_()]
    ops.crd_loss(*leaves, index, negatives, memory, update=False)  # sets Z, which then stays constant
    assert torch.autograd.gradcheck(
        lambda s, t: ops.crd_loss(s, t, index, negatives, memory, update=False),
        leaves,
        eps=1e-6,
        atol=1e-6,
        fast_mode=True,
    )


@pytest.mark.parametrize("wanted", [(True, False), (False, True), (False, False)])
def test_gradients_only_where_asked(wanted):
    student, teacher, index, negatives, memory = make()
    true = run(student, teacher, index, negatives, copy.deepcopy(memory))
    leaves = [x.requires_grad_(flag) for x, flag in zip((student, teacher), wanted, strict=True)]
    loss = ops.crd_loss(*leaves, index, negatives, memory)
    assert torch.equal(loss, true.loss)
    if any(wanted):
        loss.backward()
    for leaf, flag, grad in zip(leaves, wanted, true.grads, strict=True):
        assert torch.equal(leaf.grad, grad) if flag else leaf.grad is None


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_broken_rows_reach_only_who_has_them(monkeypatch, bad):
    student, teacher, index, negatives, memory = make(n=200, b=20, k=50)
    memory.z_student.fill_(200.0)
    memory.z_teacher.fill_(200.0)
    negatives[negatives == 77] = 78
    index[index == 77] = 78
    memory.teacher_bank[77, 3] = bad
    actual = run(student, teacher, index, negatives, memory, update=False)
    assert all(x.isfinite().all() for x in [actual.loss, *actual.grads])
    negatives[4, 7:] = 77
    actual = run(student, teacher, index, negatives, memory, update=False)
    true = gathered(monkeypatch, student, teacher, index, negatives, memory)
    assert not actual.grads[0][4].isfinite().all()
    for grad, expected in zip(actual.grads, true.grads, strict=True):
        torch.testing.assert_close(grad, expected, rtol=1e-5, atol=1e-6, equal_nan=True)


def test_large_scores_stay_finite():
    student, teacher, index, negatives, memory = make(dtype=torch.float16)
    run(student, teacher, index, negatives, memory, update=False)
    result = run(student * 320, teacher, index, negatives, memory, update=False)
    assert result.loss.isfinite()
    assert all(grad.isfinite().all() for grad in result.grads)


def test_threads_do_not_change_the_bits(backend):
    if backend.name == "emulated":
        pytest.skip("too large")
    *inputs, memory = make(n=1000, b=37, k=2000, d=100)
    results = on_threads(lambda: run(*inputs, copy.deepcopy(memory)))
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result.tensors, results[0].tensors, strict=True))


@pytest.mark.parametrize("sort", [True, False])
@pytest.mark.parametrize("bad", [-1, 50, 2**40])
def test_rows_out_of_range(sort, bad):
    student, teacher, index, negatives, memory = make()
    memory.z_student.fill_(50.0)  # so that the normalisers do not find the row first
    memory.z_teacher.fill_(50.0)
    before = {name: value.clone() for name, value in memory.state_dict().items()}
    negatives[3, 20] = bad
    if sort:
        negatives = negatives.sort(1).values
    with pytest.raises(ValueError, match=f"negatives must hold rows from 0 to 49, got {bad}"):
        ops.crd_loss(student, teacher, index, negatives, memory)
    for name, value in memory.state_dict().items():
        assert torch.equal(value, before[name])


def test_the_choice():
    """Shapes and device decide: the product for small banks."""
    assert choose("cpu", 64, 16384, 2000)
    assert choose("cpu", 64, 16384, 20000)
    assert not choose("cpu", 64, 16384, 50000)
    assert not choose("cpu", 1, 16384, 20000)
    assert choose("cuda", 64, 16384, 2000)
    assert choose("cuda", 64, 16384, 65536)
    assert not choose("cuda", 64, 16384, 65537)
    assert not choose("cuda", 1, 16384, 2000)
    assert not choose("mps", 64, 16384, 2000)


@pytest.mark.parametrize("dtype", DTYPES, **ids)
def test_empty_batch(dtype):
    student, teacher, index, negatives, memory = make(dtype=dtype)
    result = run(student[:0], teacher[:0], index[:0], negatives[:0], memory)
    assert result.loss.item() == 0
    assert all(grad.shape == (0, 16) for grad in result.grads)
