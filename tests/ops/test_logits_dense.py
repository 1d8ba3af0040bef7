"""Logits of pixels, ``[N, C, d1, ...]``, for the losses on logits: each pixel is a row."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from backends import BACKENDS
from families import DTYPES, MAP_LAYOUTS, ids
from pairing import paired

from sftn_fast import ops

PLACES = [(5,), (3, 4), (2, 3, 2), (1, 1), (0, 4)]


def maps(backend, places=(3, 4), dtype=torch.float64, n=2, c=7):
    """Return (student, teacher, classes) with an ignored pixel."""
    generator = torch.Generator().manual_seed(0)
    logits = [3 * torch.randn(n, c, *places, generator=generator, dtype=torch.float64) for _ in range(2)]
    classes = torch.randint(c, (n, *places), generator=generator)
    classes.view(-1)[:1] = -100
    return *(x.to(dtype).to(backend.device) for x in logits), classes.to(backend.device)


def truth(student, teacher, temperature, reduction="none"):
    """Compute the loss of Hinton et al. as PyTorch does."""
    log_s, q_t = F.log_softmax(student / temperature, 1), F.softmax(teacher / temperature, 1)
    loss = F.kl_div(log_s, q_t, reduction=reduction) * temperature**2
    return loss.sum(1) if reduction == "none" else loss


def gradients(call, *inputs):
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    total = call(*leaves)
    return total.detach(), torch.autograd.grad(total, leaves, torch.full_like(total, 1.5))


@paired(backend=BACKENDS, reduction=["batchmean", "sum", "none"], places=PLACES)
def test_it_is_pytorchs_divergence(backend, reduction, places):
    student, teacher, _ = maps(backend, places)
    value, grads = gradients(lambda s, t: ops.kd_loss(s, t, 3.0, reduction=reduction), student, teacher)
    true, true_grads = gradients(lambda s, t: truth(s, t, 3.0, reduction), student, teacher)
    assert value.shape == true.shape
    torch.testing.assert_close(value, true, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(grads, true_grads, rtol=1e-8, atol=1e-11)


@paired(backend=BACKENDS, places=PLACES[:4], soft=[False, True])
def test_it_is_pytorchs_cross_entropy(backend, places, soft):
    """``ce`` is the mean over the pixels with a class, ``kd`` divides by the number of images."""
    student, teacher, target = maps(backend, places)
    if soft:
        target = torch.rand(student.shape, generator=torch.Generator().manual_seed(1)).double().to(backend.device)
    options = {"label_smoothing": 0.1}
    call = lambda s, t: ops.kd_ce_loss(s, t, target, 2.0, kd_weight=0.7, ce_weight=3.0, **options).total  # noqa: E731
    true = lambda s, t: 0.7 * truth(s, t, 2.0, "batchmean") + 3.0 * F.cross_entropy(s, target, **options)  # noqa: E731
    value, grads = gradients(call, student, teacher)
    right, right_grads = gradients(true, student, teacher)
    torch.testing.assert_close(value, right, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(grads, right_grads, rtol=1e-8, atol=1e-11)
    terms = ops.kd_ce_loss(student, teacher, target, 2.0)
    assert terms.kd.item() == pytest.approx(ops.kd_loss(student, teacher, 2.0).item(), rel=1e-10)
    assert terms.ce.item() == pytest.approx(F.cross_entropy(student, target).item(), rel=1e-10)


@pytest.mark.parametrize("layout", MAP_LAYOUTS.values(), ids=MAP_LAYOUTS.keys())
def test_layouts(backend, layout):
    student, teacher, target = maps(backend, (4, 4), torch.float32)
    call = lambda s: ops.kd_ce_loss(s, teacher, target).total  # noqa: E731
    leaf = layout(student).detach().requires_grad_()
    call(leaf).backward()
    _, (expected,) = gradients(call, layout(student))
    torch.testing.assert_close(1.5 * leaf.grad, expected)


@pytest.mark.parametrize("dtype", DTYPES, **ids)
def test_dtypes(backend, dtype):
    student, teacher, target = maps(backend, dtype=dtype)
    value, grads = gradients(lambda s, t: ops.kd_ce_loss(s, t, target).total, student, teacher)
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert [grad.dtype for grad in grads] == [dtype, dtype]
    wide = ops.kd_ce_loss(student.double(), teacher.double(), target).total
    torch.testing.assert_close(value.double(), wide, rtol=2e-5, atol=0)


def test_a_learned_temperature(backend):
    student, teacher, target = maps(backend)
    temperature = torch.tensor(2.0, dtype=torch.float64, device=backend.device)
    for call, true in (
        (lambda s, t, at: ops.kd_loss(s, t, at), lambda s, t, at: truth(s, t, at, "batchmean")),
        (
            lambda s, t, at: ops.kd_ce_loss(s, t, target, at, kd_weight=1.0, ce_weight=2.0).total,
            lambda s, t, at: truth(s, t, at, "batchmean") + 2 * F.cross_entropy(s, target),
        ),
    ):
        value, grads = gradients(call, student, teacher, temperature)
        right, right_grads = gradients(true, student, teacher, temperature)
        torch.testing.assert_close((value, *grads), (right, *right_grads), rtol=1e-8, atol=1e-11)


def test_standardised_logits(backend):
    student, teacher, target = maps(backend)
    rows = [x.movedim(1, -1).reshape(-1, x.shape[1]) for x in (student, teacher)]
    value = ops.kd_loss(student, teacher, 2.0, standardize=True, reduction="none")
    expected = ops.kd_loss(*rows, 2.0, standardize=True, reduction="none")
    torch.testing.assert_close(value, expected.view(value.shape))
    terms = ops.kd_ce_loss(student, teacher, target, 2.0, standardize=True)
    assert terms.kd.item() == pytest.approx(value.sum().item() / len(value), rel=1e-6)


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format], **ids)
def test_channels_last_maps_are_not_copied(memory_format):
    if not ops._library.CPU.loaded:
        pytest.skip("no CPU kernels")
    x = torch.randn(2, 50, 40, 40).contiguous(memory_format=memory_format)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        ops.kd_loss(x, x)
    allocated = sum(event.cpu_memory_usage for event in profile.events() if event.cpu_memory_usage > 0)
    assert (allocated < x.nbytes / 2) == (memory_format == torch.channels_last)


def test_traced_whole():
    if not ops._library.CPU.loaded:
        pytest.skip("no CPU kernels")
    torch._dynamo.reset()
    student, teacher, target = torch.randn(2, 5, 2, 3), torch.randn(2, 5, 2, 3), torch.ones(2, 2, 3).long()
    call = lambda s, t: ops.kd_ce_loss(s, t, target).total  # noqa: E731
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager", dynamic=True)
    torch.testing.assert_close(gradients(compiled, student, teacher), gradients(call, student, teacher))


def test_arguments(backend):
    x, y = torch.zeros(2, 3, 4, 4, device=backend.device), torch.zeros(2, 4, 4, dtype=torch.int64).to(backend.device)
    for target, message in (
        (y[:, :3], r"target must be \[N, d1, ...\] = \[2, 4, 4\], got \[2, 3, 4\]"),
        (y.view(-1), r"target must be \[N, d1, ...\] = \[2, 4, 4\], got \[32\]"),
        (x.long(), r"got \[2, 3, 4, 4\]; probabilities \[N, C, d1, ...\] must be floating-point"),
        (x[:, :2], r"target must be \[N, C, d1, ...\] = \[2, 3, 4, 4\] for probabilities, got \[2, 2, 4, 4\]"),
    ):
        with pytest.raises(ValueError, match=message):
            ops.kd_ce_loss(x, x, target)
    with pytest.raises(ValueError, match="teacher_logits must have the shape of student_logits"):
        ops.kd_loss(x, x[..., :3])
    if backend.name != "cuda":
        with pytest.raises(ValueError, match=r"target must hold classes from 0 to 2 .* got 3"):
            ops.kd_ce_loss(x, x, y + 3)
