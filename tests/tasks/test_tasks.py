"""The losses of the tasks, and the contract that the engine relies on."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sftn_fast import distillers, models
from sftn_fast.config import SFTNConfig
from sftn_fast.models import StagedNet
from sftn_fast.sftn import StudentAwareTeacher
from sftn_fast.tasks import DistillTask, SFTNTask, SupervisedTask, Task

SIZE = 8
CLASSES = 5


def net(name: str) -> StagedNet:
    return models.build(name, num_classes=CLASSES)


def batch(n: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, 3, SIZE, SIZE, generator=generator), torch.arange(n) % CLASSES, torch.arange(n)


def sftn_task(config: SFTNConfig) -> SFTNTask:
    aware = StudentAwareTeacher(net("wrn_16_1"), net("resnet8"), image_size=SIZE, branch_stages=config.branch_stages)
    return SFTNTask(aware, config)


def distill_task() -> DistillTask:
    student = net("resnet8")
    distiller = distillers.build("kd", student=student, teacher=net("wrn_16_1"), num_samples=8, image_size=SIZE)
    return DistillTask(student, distiller)


TASKS: dict[str, tuple[Callable[[], Task], set[str]]] = {
    "supervised": (lambda: SupervisedTask(net("resnet8")), {"total", "ce"}),
    "sftn": (lambda: sftn_task(SFTNConfig()), {"total", "teacher_ce", "branch_ce", "branch_kl"}),
    "sftn, branches": (
        lambda: sftn_task(SFTNConfig(kl_gradient="branches")),
        {"total", "teacher_ce", "branch_ce", "branch_kl"},
    ),
    "distill": (distill_task, {"total", "ce", "kd"}),
}


@pytest.fixture(params=TASKS)
def task(request: pytest.FixtureRequest) -> Task:
    torch.manual_seed(0)
    return TASKS[request.param][0]().train()


@pytest.mark.parametrize("kind", TASKS)
@pytest.mark.parametrize("precision", ["fp32", "autocast", "half"])
def test_terms(kind: str, precision: str) -> None:
    dtype = torch.bfloat16 if precision == "half" else torch.float32
    task = TASKS[kind][0]().train().to(dtype)
    images, target, index = batch()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "autocast"):
        terms = task(images.to(dtype), target, index)
    assert set(terms) == TASKS[kind][1]
    assert all(term.shape == () and term.dtype == torch.float32 and term.isfinite() for term in terms.values())
    assert [name for name, term in terms.items() if term.requires_grad] == ["total"]


def test_every_parameter_learns(task: Task) -> None:
    task(*batch())["total"].backward()
    assert [name for name, p in task.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_steps_lower_the_loss(task: Task) -> None:
    optimizer = torch.optim.SGD(task.parameters(), lr=0.05, momentum=0.9)
    totals = []
    for _ in range(6):
        optimizer.zero_grad()
        total = task(*batch())["total"]
        total.backward()
        optimizer.step()
        totals.append(total.item())
    assert totals[-1] < 0.9 * totals[0]


def test_the_model_gives_logits_and_is_part_of_the_task(task: Task) -> None:
    task.eval()
    assert task.model(batch()[0]).shape == (8, CLASSES)
    assert {id(p) for p in task.model.parameters()} <= {id(p) for p in task.parameters()}
    assert list(task.model.state_dict()) == list(net(task.model.name).state_dict())


def test_state_is_saved_once_and_restored(task: Task) -> None:
    state = task.state_dict()
    pointers = [tensor.data_ptr() for tensor in state.values()]
    assert len(pointers) == len(set(pointers))
    saved = {name: tensor.clone() for name, tensor in state.items()}
    with torch.no_grad():
        for p in task.parameters():
            p.add_(1)
    task.load_state_dict(saved)
    assert all(torch.equal(saved[name], tensor) for name, tensor in task.state_dict().items())


@pytest.mark.parametrize("label", [-1, CLASSES])
def test_a_label_out_of_range_is_an_error(label: int) -> None:
    images, target, index = batch()
    target[3] = label
    with pytest.raises(IndexError, match="out of bounds"):
        SupervisedTask(net("resnet8"))(images, target, index)


@pytest.mark.parametrize(
    "config",
    [
        SFTNConfig(),
        SFTNConfig(teacher_weight=0.5, ce_weight=2.0, kl_weight=0.25, temperature=4.0),
        SFTNConfig(direction="branch_to_teacher", temperature=2.0),
        SFTNConfig(branch_reduction="sum"),
        SFTNConfig(branch_stages=(3,)),
    ],
    ids=["paper", "weights", "direction", "sum", "last-stage"],
)
def test_sftn_is_its_formula(config: SFTNConfig) -> None:
    torch.manual_seed(0)
    task = sftn_task(config).double()
    images, target, index = batch()
    logits, branch_logits = task.student_aware(images.double())
    terms = task(images.double(), target, index)

    def ce(z: Tensor) -> Tensor:
        return -z.log_softmax(1)[torch.arange(len(z)), target].mean()

    def kl(z: Tensor) -> Tensor:
        logs = [(logits / config.temperature).log_softmax(1), (z / config.temperature).log_softmax(1)]
        p, q = logs if config.direction == "teacher_to_branch" else reversed(logs)
        return config.temperature**2 * (p.exp() * (p - q)).sum(1).mean()

    over_branches = sum if config.branch_reduction == "sum" else lambda values: sum(values) / len(values)
    teacher_ce = ce(logits)
    branch_ce, branch_kl = (over_branches([loss(z) for z in branch_logits]) for loss in (ce, kl))
    total = config.teacher_weight * teacher_ce + config.ce_weight * branch_ce + config.kl_weight * branch_kl
    expected = {"total": total, "teacher_ce": teacher_ce, "branch_ce": branch_ce, "branch_kl": branch_kl}
    for name, value in expected.items():
        torch.testing.assert_close(terms[name].detach(), value.detach(), rtol=1e-9, atol=0)

    parameters = list(task.parameters())
    ours, theirs = (torch.autograd.grad(loss, parameters, allow_unused=True) for loss in (terms["total"], total))
    for mine, reference in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-6, atol=1e-9)


def test_sftn_reaches_the_teacher_through_its_branches() -> None:
    """Check that divergence and branches' cross-entropy each change the teacher: this makes it student-aware."""
    torch.manual_seed(0)
    for config in (SFTNConfig(0, 1, 0), SFTNConfig(0, 0, 1)):
        task = sftn_task(config)
        task(*batch())["total"].backward()
        stem = next(task.model.stem.parameters())
        assert stem.grad is not None and stem.grad.abs().sum() > 0


def test_sftn_trains_a_finished_teacher_on() -> None:
    teacher = net("wrn_16_1").eval()
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    aware = StudentAwareTeacher(teacher, net("resnet8"), image_size=SIZE)
    task = SFTNTask(aware, SFTNConfig())
    assert task.model is teacher
    assert all(torch.equal(before[name], tensor) for name, tensor in task.model.state_dict().items())


def test_the_divergence_of_sftn_warms_up() -> None:
    task = sftn_task(SFTNConfig(kl_weight=2, kl_warmup_epochs=4))
    weights = []
    for epoch in range(6):
        moved = task.begin_epoch(epoch)
        terms = {name: term.item() for name, term in task(*batch()).items()}
        weights.append((terms["total"] - terms["teacher_ce"] - terms["branch_ce"]) / terms["branch_kl"])
        assert moved == (epoch < 4), "a recorded step is recorded again where the weight changed"
    assert weights == pytest.approx([0.5, 1, 1.5, 2, 2, 2], rel=1e-3)


@pytest.mark.parametrize("teacher_weight", [0.0, 1.5])
def test_the_divergence_may_leave_the_teachers_logits_alone(teacher_weight: float) -> None:
    def head_of(kl_gradient: str, kl_weight: float) -> tuple[dict[str, float], Tensor]:
        torch.manual_seed(0)
        config = SFTNConfig(teacher_weight=teacher_weight, kl_weight=kl_weight, kl_gradient=kl_gradient)  # type: ignore[arg-type]
        task = sftn_task(config).double()
        images, target, index = batch()
        terms = task(images.double(), target, index)
        terms["total"].backward()
        grad = task.model.get_parameter("head.fc.weight").grad
        return {name: term.item() for name, term in terms.items()}, torch.zeros(()) if grad is None else grad

    both, of_both = head_of("both", 3.0)
    branches, of_branches = head_of("branches", 3.0)
    assert both == pytest.approx(branches), "only gradients differ"
    without = head_of("both", 0.0)[1]
    assert torch.allclose(of_branches, without) and not torch.allclose(of_both, without)


def test_a_distiller_of_another_student_is_refused() -> None:
    with pytest.raises(ValueError, match="another student"):
        DistillTask(net("resnet8"), distill_task().distiller)


def test_the_frozen_teacher_follows_the_task() -> None:
    task = distill_task()
    teacher = task.distiller.teacher
    held = {id(p) for p in teacher.parameters()}
    task.train()
    assert not any(module.training for module in teacher.modules())
    assert all(module.training for module in task.model.modules())
    assert held.isdisjoint(id(p) for p in task.parameters())
    assert not [name for name in task.state_dict() if not name.startswith("model.")]
    task.to(torch.float64)
    assert {p.dtype for p in (*teacher.parameters(), *task.parameters())} == {torch.float64}
    images, target, index = batch()
    task(images.double(), target, index)["total"].backward()
