"""Methods that relate images of all ranks: several ranks against one with the whole batch."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import pytest
import torch
from engine.ranks import on_ranks
from torch import Tensor

from sftn_fast import distillers, models, ops
from sftn_fast.config import Config
from sftn_fast.distillers.gather import whole_batch
from sftn_fast.engine import distributed, parallel
from sftn_fast.tasks import DistillTask

SIZE, CLASSES, SAMPLES, BATCH = 8, 4, 36, 12
STEPS = 3
RELATIONAL = ("rkd", "sp", "pkt", "cc", "dist", "srd:kd=0", "mlld:per_row=true")
SPECS = (*RELATIONAL, "uskd", "crd:negatives=8", "sp,rkd=0.5,crd:negatives=8")


def negatives_by_index(index: Tensor, labels: Tensor, count: int, **_: Any) -> Tensor:
    """Return samples of the next classes, the same on every rank."""
    return ((index[:, None] + 1 + torch.arange(count) % (CLASSES - 1)) % SAMPLES).sort().values


def train(spec: str, gather: bool) -> dict[str, Any]:
    """Run three steps; return the gradients of each, and the buffers at the end."""
    rank, ranks = distributed.rank(), distributed.world_size()
    torch.manual_seed(0)
    student, teacher = (models.build(name, num_classes=CLASSES) for name in ("resnet8", "resnet14"))
    distiller = distillers.build(
        spec,
        student=student,
        teacher=teacher,
        num_samples=SAMPLES,
        image_size=SIZE,
        labels=None if spec.startswith("crd") else torch.arange(SAMPLES) % CLASSES,
        gather=gather,
    )
    task = DistillTask(student, distiller).train()
    student.eval()  # batch statistics would differ between the ranks
    forward = parallel.wrap(task)
    sgd = torch.optim.SGD(task.parameters(), lr=1e-5)
    ops.sample_negatives = negatives_by_index
    order = torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(2))
    images = torch.randn(SAMPLES, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    if distiller.strong_view:
        images = torch.stack([images, images.flip(-1)], dim=1)
    gradients = []
    for step in range(STEPS):
        share = BATCH // ranks
        own = order[step * BATCH :][rank * share : (rank + 1) * share]
        sgd.zero_grad()
        forward(images[own], own % CLASSES, own)["total"].backward()
        gradients.append([p.grad.clone() for p in task.parameters()])
        sgd.step()
    return {"gradients": gradients, "buffers": dict(distiller.named_buffers())}


def train_all(gather: bool) -> dict[str, Any]:
    return {spec: train(spec, gather) for spec in SPECS}


@lru_cache
def runs(ranks: int, gather: bool) -> list[dict[str, Any]]:
    """Run all methods in one set of processes, since starting them takes most of the time."""
    return on_ranks(ranks, train_all, gather)


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("spec", SPECS)
def test_ranks_equal_one_with_the_whole_batch(spec, ranks):
    (alone,) = (run[spec] for run in runs(1, gather=True))
    together = [run[spec] for run in runs(ranks, gather=True)]
    for run in together:
        for ours, theirs in zip(run["gradients"], alone["gradients"], strict=True):
            # Relative to the largest gradient: a zero on one rank may be rounding on several. So is that of the bias
            # of SRD's projector, which BatchNorm takes away again.
            scale = (2.5 if spec.startswith("srd") else 1) * max(float(gradient.abs().max()) for gradient in theirs)
            for mine, reference in zip(ours, theirs, strict=True):
                torch.testing.assert_close(mine, reference, rtol=1e-4, atol=2e-6 * scale)
        for name, buffer in run["buffers"].items():
            torch.testing.assert_close(buffer, alone["buffers"][name], rtol=1e-5, atol=1e-6)
            assert torch.equal(buffer, together[0]["buffers"][name]), f"{name} differs from rank to rank"


@pytest.mark.parametrize("spec", RELATIONAL)
def test_without_gathering_each_rank_relates_its_own_images(spec):
    apart, alone = runs(2, gather=False)[0][spec], runs(1, gather=True)[0][spec]
    ours, theirs = (torch.cat([g.flatten() for g in run["gradients"][0]]) for run in (apart, alone))
    assert (ours - theirs).norm() > 0.01 * theirs.norm()


def test_crd_gathers_in_any_case():
    for ours, theirs in zip(runs(2, gather=True), runs(2, gather=False), strict=True):
        gathered, plain = (run["crd:negatives=8"]["buffers"] for run in (ours, theirs))
        assert len(gathered) == 5 and not gathered["methods.0.crd.criterion.memory.z_student"].isnan()
        assert all(torch.equal(buffer, plain[name]) for name, buffer in gathered.items())


def rows_and_gradients(dtype: torch.dtype) -> tuple[list[float], list[float]]:
    rank = distributed.rank()
    own = torch.tensor([[1.0 + rank], [10.0 + rank]], dtype=dtype)
    if not dtype.is_floating_point:
        return whole_batch(own).flatten().tolist(), []
    # Not contiguous, and with a gradient to every rank's rows.
    own = own.expand(2, 3).T.contiguous().T.requires_grad_()
    whole = whole_batch(own)
    (whole.float().square().sum() / 2).backward()
    assert own.grad is not None and whole.dtype == own.grad.dtype == dtype
    return whole[:, 0].tolist(), own.grad[:, 0].tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64])
def test_rows_come_by_rank_and_gradients_go_to_the_own(dtype):
    for rank, (rows, gradient) in enumerate(on_ranks(2, rows_and_gradients, dtype)):
        assert rows == [1, 10, 2, 11]
        assert gradient == ([2 * (1 + rank), 2 * (10 + rank)] if dtype.is_floating_point else [])


def test_alone_there_is_nothing_to_gather():
    own = torch.randn(3, 2)
    assert whole_batch(own) is own
    assert not Config().gather
