"""The losses that are not ops, against their definitions written out."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_methods import build

from sftn_fast.data import Batch
from sftn_fast.distillers.methods import sskd
from sftn_fast.models import Features
from sftn_fast.nn import KDSVDLoss

GENERATOR = torch.Generator().manual_seed(0)
STUDENT, TEACHER = (3 * torch.randn(7, 6, generator=GENERATOR) for _ in range(2))
TARGET = torch.tensor([0, 5, 2, 2, 1, 3, 4])


def features(logits):
    none = logits.new_zeros(len(logits), 1)
    return Features(none, [], None, none, logits)


def loss(spec, student=STUDENT, teacher=TEACHER):
    (method,) = build(spec).methods[0].values()
    batch = Batch(torch.zeros(7, 1, 1, 1), TARGET, torch.arange(7))
    return method.loss(features(student), features(teacher), batch)


def test_dkd():
    expected = 0.0
    for s, t, y in zip(STUDENT.double(), TEACHER.double(), TARGET.tolist(), strict=True):
        p_s, p_t = (s / 4).softmax(0), (t / 4).softmax(0)
        binary = sum(a * (a / b).log() for a, b in ((p_t[y], p_s[y]), (1 - p_t[y], 1 - p_s[y])))
        rest = [c for c in range(6) if c != y]
        q_s, q_t = p_s[rest] / p_s[rest].sum(), p_t[rest] / p_t[rest].sum()
        expected += 16 * (0.5 * binary + 2 * (q_t * (q_t / q_s).log()).sum()) / 7
    assert loss("dkd:alpha=0.5:beta=2:warmup=0").item() == pytest.approx(expected.item(), rel=1e-5)


def test_dkd_has_a_gradient_everywhere():
    student = STUDENT.clone().requires_grad_()
    loss("dkd", student).backward()
    assert student.grad.isfinite().all() and (student.grad != 0).all()


def test_dist():
    s, t = ((x.double() / 2).softmax(1).numpy() for x in (STUDENT, TEACHER))
    rows = np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(s, t, strict=True)])
    columns = np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(s.T, t.T, strict=True)])
    expected = 4 * (3 * (1 - rows) + 0.5 * (1 - columns))
    assert loss("dist:inter=3:intra=0.5:temperature=2").item() == pytest.approx(expected, rel=1e-4)


def test_dist_of_constant_predictions_is_finite():
    student = torch.zeros(7, 6, requires_grad=True)
    value = loss("dist", student)
    value.backward()
    assert value.isfinite() and student.grad.isfinite().all()


@pytest.mark.parametrize(("method", "epochs"), [("dkd", 20), ("reviewkd", 20)])
def test_warm_up(method, epochs):
    distiller = build(method)
    (inner,) = distiller.methods[0].values()
    assert inner.warmup.factor == 1
    factors = []
    for epoch in (0, 9, epochs - 1, epochs + 5):
        distiller.begin_epoch(epoch)
        factors.append(inner.warmup.factor)
    assert factors == [1 / epochs, 10 / epochs, 1, 1]


@pytest.mark.parametrize("share", [0.0, 0.5, 0.75, 1.0])
def test_sskd_counts_the_right_ones_and_the_best_of_the_wrong_ones(share):
    scores = torch.randn(40, 6, generator=torch.Generator().manual_seed(1))
    truth = torch.arange(40) % 6
    ranks = [(row > row[y]).sum().item() for row, y in zip(scores, truth, strict=True)]
    right = sum(rank == 0 for rank in ranks)
    keep = right + int((40 - right) * share)
    expected = sorted(sorted(range(40), key=lambda i: (ranks[i], i))[:keep])
    assert sskd.counted(scores, truth, share).nonzero().flatten().tolist() == expected


def test_sskd_similarities():
    embeddings = torch.randn(12, 5, generator=torch.Generator().manual_seed(2))
    found = sskd.similarities(embeddings, 3)
    for row in range(9):
        for column in range(3):
            expected = F.cosine_similarity(embeddings[3 + row], embeddings[column], dim=0)
            assert found[row, column].item() == pytest.approx(expected.item(), abs=1e-6)


def test_rotations_of_an_image_stand_one_batch_apart():
    images = torch.arange(2 * 4.0).view(2, 1, 2, 2)
    turned = sskd.rotations(images)
    assert turned.shape == (6, 1, 2, 2)
    for quarters in (1, 2, 3):
        assert torch.equal(turned[2 * (quarters - 1) + 1], images[1].rot90(quarters, (1, 2)))


def leading(matrix, n):
    """Return the n largest singular values, normalised, and right singular vectors of a matrix [H W, C]."""
    # PyTorch's SVD, since the arbitrary sign of a vector changes its difference from the next stage's.
    _, values, vectors = (x.numpy() for x in torch.linalg.svd(matrix, full_matrices=False))
    return values[:n] / np.linalg.norm(values[:n]), vectors[:n]


@pytest.mark.parametrize("k", [1, 2])
def test_kdsvd(k):
    """Compute the loss by loops over images, stages and vectors."""
    generator = torch.Generator().manual_seed(2)
    shapes = [(3, 6, 8, 8), (3, 7, 4, 4), (3, 5, 4, 4)]
    student, teacher = ([torch.randn(shape, generator=generator) for shape in shapes] for _ in range(2))
    expected = [0.0, 0.0]
    for image in range(3):
        stages = []
        for s, t in zip(student, teacher, strict=True):
            values, wanted = leading(t[image].double().flatten(1).T, k)
            candidates = leading(s[image].double().flatten(1).T, k + 3)[1]
            aligned = []
            for vector in wanted:
                cosines = candidates @ vector
                best = np.abs(cosines).argmax()
                aligned.append(np.sign(cosines[best]) * candidates[best])
            stages.append([[v * x for v, x in zip(values, each, strict=True)] for each in (aligned, wanted)])
        for number, (before, after) in enumerate(pairwise(stages)):
            for i in range(k):
                own, other = (
                    np.exp(-((b[i][None] - a[i][:, None]) ** 2) / 8) for a, b in zip(before, after, strict=True)
                )
                expected[number] += ((own - other) ** 2).sum() / 3
    losses = KDSVDLoss(k)(student, teacher)
    assert all(loss.dtype == torch.float32 for loss in losses)
    assert [loss.item() for loss in losses] == pytest.approx(expected, rel=1e-5)


def test_kdsvd_is_float32_under_autocast():
    generator = torch.Generator().manual_seed(2)
    student, teacher = ([torch.randn(2, 6, 4, 4, generator=generator) for _ in range(2)] for _ in range(2))
    student = [x.bfloat16().requires_grad_() for x in student]
    with torch.autocast("cpu", torch.bfloat16):
        (loss,) = KDSVDLoss()(student, [x.bfloat16() for x in teacher])
    loss.backward()
    (wide,) = KDSVDLoss()([x.detach().double() for x in student], [x.bfloat16().double() for x in teacher])
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(wide.item(), rel=1e-6)
    assert all(x.grad.isfinite().all() and x.grad.abs().sum() > 0 for x in student)


def test_kdsvds_gradient():
    """Check the gradient for maps of full rank, and that dead pixels and channels give no NaN."""
    generator = torch.Generator().manual_seed(2)
    for shape in ((2, 3, 2, 3), (2, 5, 2, 2)):  # more pixels than channels, and fewer
        maps = [torch.randn(shape, generator=generator).double().requires_grad_() for _ in range(2)]
        teacher = [torch.randn(shape, generator=generator).double() for _ in range(2)]
        assert torch.autograd.gradcheck(lambda *x, teacher=teacher: KDSVDLoss(1)(x, teacher)[0], maps)
    dead = [torch.zeros(2, 6, 4, 4, requires_grad=True), torch.randn(2, 6, 4, 4, generator=generator)]
    dead[1][:, 3:], dead[1][:, :, 1:] = 0, 0
    dead[1].requires_grad_()
    (loss,) = KDSVDLoss(2)(dead, [torch.randn(2, 6, 4, 4, generator=generator) for _ in range(2)])
    loss.backward()
    assert loss.isfinite() and all(x.grad.isfinite().all() for x in dead)
