"""A teacher runs with its current weights, however they were written, and in evaluation mode."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from engine.ranks import on_ranks
from models.networks import probed_once
from torch import Tensor, nn

from sftn_fast import distillers, models, ops
from sftn_fast.distillers.distiller import Distiller
from sftn_fast.engine import distributed
from sftn_fast.experiment.teacher_cache.store import TeacherLogits
from sftn_fast.models import StagedNet
from sftn_fast.models.staged import Head
from sftn_fast.tasks import DistillTask

SIZE, CLASSES, BATCH = 8, 4, 8


def build(spec: str = "kd", *, labels: bool = True) -> Distiller:
    torch.manual_seed(0)
    student, teacher = (probed_once(models.build(name, num_classes=CLASSES)) for name in ("resnet8", "resnet14"))
    truth = torch.arange(BATCH) % CLASSES if labels else None
    return distillers.build(
        spec, student=student, teacher=teacher, num_samples=BATCH, image_size=SIZE, labels=truth
    ).train()


def batch() -> tuple[Tensor, Tensor, Tensor]:
    images = torch.randn(BATCH, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    return images, torch.arange(BATCH) % CLASSES, torch.arange(BATCH)


def by_fused_sgd(net: StagedNet) -> None:
    sgd = torch.optim.SGD(net.parameters(), lr=0.5, fused=True)
    net.train()(batch()[0]).square().sum().backward()
    torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
    sgd.step()
    sgd.zero_grad()


def by_data(net: StagedNet) -> None:
    for p in net.parameters():
        p.data.mul_(1.5)


def by_running_statistics(net: StagedNet) -> None:
    for buffer in net.buffers():
        if buffer.is_floating_point():
            buffer.data.add_(0.5)


def by_state_dict(net: StagedNet) -> None:
    torch.manual_seed(9)
    net.load_state_dict(models.build(net.name, num_classes=CLASSES).state_dict())


def by_assignment(net: StagedNet) -> None:
    torch.manual_seed(9)
    net.load_state_dict(models.build(net.name, num_classes=CLASSES).state_dict(), assign=True)


def by_a_new_parameter(net: StagedNet) -> None:
    net.head.fc.weight = nn.Parameter(net.head.fc.weight.detach().neg())


def by_another_module(net: StagedNet) -> None:
    net.head.fc = nn.Linear(net.head.fc.in_features, CLASSES)


@torch.inference_mode()
def in_inference_mode(net: StagedNet) -> None:
    for p in net.parameters():
        p.mul_(1.5)


def by_numpy(net: StagedNet) -> None:
    for p in net.parameters():
        p.detach().numpy()[...] *= 1.5


def by_an_operator(net: StagedNet) -> None:
    for p in net.parameters():
        torch.ops.aten.mul.out(p.data, torch.tensor(1.5), out=p.data)


WRITERS: dict[str, Callable[[StagedNet], None]] = {
    name: writer for name, writer in list(globals().items()) if name.startswith(("by_", "in_"))
}


def copied(distiller: Distiller) -> Distiller:
    """Return a distiller with a copy of the teacher and the same adapters, which never saw earlier weights."""
    teacher = probed_once(models.build(distiller.teacher.name, num_classes=CLASSES))
    teacher.load_state_dict(distiller.teacher.state_dict())
    spec = ",".join(f"{name}={weight}" for name, weight in distiller.weights.items())
    fresh = distillers.build(
        spec,
        student=distiller.student,
        teacher=teacher,
        num_samples=BATCH,
        image_size=SIZE,
        labels=torch.arange(BATCH) % CLASSES,
    )
    fresh.load_state_dict(distiller.state_dict())
    return fresh.train(distiller.training)


SEVERAL = "at=1,oh=1e-3,rkd=1,ce=1"


@pytest.mark.parametrize(
    ("spec", "writer"), [*(("kd=1,ce=1", writer) for writer in WRITERS), (SEVERAL, "by_data"), (SEVERAL, "by_numpy")]
)
def test_terms_are_those_of_the_present_weights(spec: str, writer: str) -> None:
    distiller = build(spec)
    distiller.student.eval()  # so that its BatchNorm statistics do not change between calls
    distiller.eval()
    before = distiller(*batch())
    WRITERS[writer](distiller.teacher)
    state = copy.deepcopy(distiller.teacher.state_dict())
    now, expected = distiller(*batch()), copied(distiller)(*batch())
    for name, value in expected.items():
        torch.testing.assert_close(now[name], value, rtol=0, atol=0)
    assert now["total"] != before["total"]
    assert all(torch.equal(value, state[name]) for name, value in distiller.teacher.state_dict().items())


@pytest.mark.parametrize("writer", ["by_fused_sgd", "by_data", "in_inference_mode"])
def test_within_one_autocast_context(writer: str) -> None:
    """Ignore autocast's cache, which keeps casts of weights that require grad until its context ends."""
    distiller = build("kd=1,ce=0")
    distiller.student.eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        distiller(*batch())
        WRITERS[writer](distiller.teacher)
        now = distiller(*batch())["kd"]
        assert torch.is_autocast_cache_enabled()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(now, distiller(*batch())["kd"])


def test_margins_are_those_of_the_present_batchnorms() -> None:
    distiller = build("oh")
    with torch.no_grad():
        for norm in distiller.teacher.preact_norms():
            norm.bias.data.add_(1.0)
    expected = [ops.oh_margin(*affine) for affine in distiller.teacher.preact_affines()]
    for margin, value in zip(distiller.methods[0]["oh"].margins(), expected, strict=True):
        assert torch.equal(margin, value)


@pytest.mark.parametrize("spec", ["ab", "ft", "fsp", "sskd"])
def test_initialisations_too(spec: str) -> None:
    distiller = build(spec)
    (_, first), *_ = distiller.initialisations()
    task = first.task.eval()
    before = task(*batch())["total"]
    by_data(distiller.teacher)
    twin = copy.deepcopy(task)
    assert torch.equal(task(*batch())["total"], twin(*batch())["total"])
    assert not torch.equal(task(*batch())["total"], before)


@pytest.mark.parametrize("spec", ["kd", "at"])
def test_a_teacher_that_trains_elsewhere_goes_on_so(spec: str) -> None:
    """Run it in evaluation mode, keep its statistics, and restore the mode of each module."""
    distiller = build(spec)
    teacher = distiller.teacher.train()
    teacher.stages[0].eval()
    modes = [module.training for module in teacher.modules()]
    state = copy.deepcopy(teacher.state_dict())
    distiller.student.eval()
    first = distiller(*batch())
    assert [module.training for module in teacher.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in teacher.state_dict().items())
    teacher.eval()
    assert torch.equal(distiller(*batch())["total"], first["total"])


def test_hooks_on_a_teacher_are_called() -> None:
    distiller = build("kd")
    distiller(*batch())
    seen = []
    distiller.teacher.stem[0].register_forward_hook(lambda *_: seen.append(1))
    distiller(*batch())
    assert seen == [1]


@pytest.mark.parametrize("augmented", [True, False])
def test_kept_logits_of_other_weights_are_not_used(tmp_path, caplog, augmented: bool) -> None:
    distiller = build("kd=1,ce=0")
    distiller.student.eval()
    images, target, index = batch()

    def unaugmented():
        yield index, distiller.teacher(images).detach()

    logits = TeacherLogits(
        tmp_path, {}, num_samples=BATCH, seen=BATCH, like=torch.zeros(CLASSES),
        unaugmented=None if augmented else unaugmented,
    )  # fmt: skip
    distiller.keep_logits(logits)
    for epoch in (0, 0):  # the second reads what the first wrote
        distiller.begin_epoch(epoch)
        known = distiller(images, target, index)["kd"]
        logits.end_epoch(epoch + 1)
    assert logits.known and len(list(tmp_path.iterdir())) == 1
    by_data(distiller.teacher)
    assert distiller.begin_epoch(0), "a step computes otherwise now"
    now = distiller(images, target, index)["kd"]
    logits.end_epoch(2)
    assert torch.equal(now, copied(distiller)(images, target, index)["kd"]) and now != known
    assert len(list(tmp_path.iterdir())) == 1
    assert ["have changed" in message for message in caplog.messages] == [True]


def broadcast(_: None = None) -> tuple[float, float]:
    """Return losses before and after rank 0's teacher is broadcast to the others."""
    distiller = build("kd=1,ce=0")
    distiller.student.eval()
    with torch.no_grad():
        for p in distiller.teacher.parameters():
            p.mul_(1 + distributed.rank())
        before = distiller(*batch())["kd"].item()
        for p in distiller.teacher.parameters():
            torch.distributed.broadcast(p.data, src=0)
        return before, distiller(*batch())["kd"].item()


def test_weights_that_a_collective_writes() -> None:
    (first, same), (other, now) = on_ranks(2, broadcast)
    assert first == same == now != other


def tiny(name: str) -> StagedNet:
    """Return a network of one stage with a BatchNorm; each further block would compile for half a second."""
    stage = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    return StagedNet(nn.Identity(), [stage], Head(4, CLASSES), num_classes=CLASSES, in_channels=3, name=name)


def test_a_compiled_task_reads_the_present_weights() -> None:
    torch.manual_seed(0)
    networks = {"student": tiny("student"), "teacher": tiny("teacher")}
    distiller = distillers.build("kd=1,ce=0", **networks, num_samples=BATCH, image_size=SIZE).train()
    distiller.student.eval()
    task = torch.compile(DistillTask(distiller.student, distiller), backend="aot_eager")
    first = task(*batch())["kd"]
    by_data(distiller.teacher)
    now = task(*batch())["kd"]
    torch.testing.assert_close(now, distiller(*batch())["kd"])
    assert now != first
