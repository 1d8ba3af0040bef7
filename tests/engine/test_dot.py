"""DOT: two momenta against the authors' figures, resumed exactly, replayed, in parts and over several ranks."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from engine import fake_cuda_graph
from engine.ranks import on_ranks
from sftn_fast import cli, distillers, models
from sftn_fast.config import ConfigError, OptimConfig
from sftn_fast.engine import Layout, Schedule, distributed, dot
from sftn_fast.engine.checkpoint_content import check_content
from sftn_fast.engine.state import TrainState
from sftn_fast.engine.step import TrainStep
from sftn_fast.tasks import DistillTask

SAMPLES, CLASSES, BATCH = 16, 4, 8
IMAGES = torch.randn(SAMPLES, 3, 8, 8, generator=torch.Generator().manual_seed(1))


class Slopes(nn.Module):
    """A task whose two gradients are the numbers in its images."""

    model = None

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, images: Tensor, target: Tensor, index: Tensor) -> dict[str, Tensor]:
        of_labels, of_teacher = images[:, 0].double().mean(), images[:, 1].double().mean()
        labels = of_labels * self.weight
        return {"total": labels + of_teacher * self.weight, "labels": labels}


def step_of(task: nn.Module, optim: OptimConfig, lr: float = 0.1, **options: object) -> TrainStep:
    pair = dot.build_pair(task, optim, lr)
    schedule = Schedule(optim, lr, 2, 2)
    return TrainStep(task, pair[0], schedule, Layout(torch.device("cpu")), teacher_optimizer=pair[1], **options)


def test_the_authors_figure() -> None:
    task = Slopes()
    step = step_of(task, OptimConfig(lr=0.1, batch_size=2, weight_decay=5e-4, dot=0.075, schedule="constant"))
    for number, slopes in enumerate([(0.5, 0.2), (0.4, 0.3)]):
        images = torch.tensor([slopes, slopes], dtype=torch.float64)
        zeros = torch.zeros(2, dtype=torch.int64)
        terms = step(SimpleNamespace(images=images, target=zeros, index=zeros), number)
        assert terms["grad_norm"].item() == pytest.approx(sum(slopes)) and "labels" not in terms
    assert task.weight.item() == pytest.approx(0.7991122525, rel=1e-9)


def distilling(spec: str = "kd,cat") -> DistillTask:
    torch.manual_seed(0)
    student, teacher = (models.build(name, num_classes=CLASSES) for name in ("resnet8", "resnet14"))
    distiller = distillers.build(spec, student=student, teacher=teacher, num_samples=SAMPLES, image_size=8)
    return DistillTask(student, distiller, splits=True).train()


def batches(count: int, first: int = 0, ranks: int = 1, rank: int = 0) -> list[SimpleNamespace]:
    found = []
    for number in range(first, first + count):
        index = (torch.arange(BATCH) + 3 * number) % SAMPLES
        index = index.tensor_split(ranks)[rank]
        found.append(SimpleNamespace(images=IMAGES[index], target=index % CLASSES, index=index))
    return found


OPTIM = OptimConfig(lr=0.02, batch_size=BATCH, dot=0.075, schedule="constant")


def weights(task: nn.Module, step: TrainStep) -> dict[str, Tensor]:
    momenta = [value for each in step.optimizers for state in each.state.values() for value in state.values()]
    return copy.deepcopy(task.state_dict() | {f"momentum {i}": value for i, value in enumerate(momenta)})


def train(steps: int = 4, optim: OptimConfig = OPTIM, **options: object) -> dict[str, Tensor]:
    task = distilling()
    step = step_of(task, optim, 0.02, **options)
    for number, batch in enumerate(batches(steps)):
        step(batch, number)
    return weights(task, step)


def assert_equal(ours: dict[str, Tensor], theirs: dict[str, Tensor], **tolerance: float) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, msg=name, **(tolerance or {"rtol": 0, "atol": 0}))


def test_it_resumes_with_both_momenta() -> None:
    whole = train()
    task = distilling()
    step = step_of(task, OPTIM, 0.02)
    for number, batch in enumerate(batches(2)):
        step(batch, number)
    saved = copy.deepcopy(TrainState(task, step).state_dict(0))
    fresh = distilling()
    again = step_of(fresh, OPTIM, 0.02)
    TrainState(fresh, again).load_state_dict(saved)
    for number, batch in enumerate(batches(2, first=2), start=2):
        again(batch, number)
    assert_equal(weights(fresh, again), whole)
    with pytest.raises(ValueError, match="it has 1 optimizers, not 2"):
        check_content(saved | {"teacher_optimizer": []}, fresh, again.optimizers)
    with pytest.raises(ValueError, match="momentum 0"):
        wrong = copy.deepcopy(saved)
        wrong["teacher_optimizer"][0]["state"][0]["momentum_buffer"] = torch.zeros(2)
        check_content(wrong, fresh, again.optimizers)


def test_a_recorded_step_is_the_same() -> None:
    assert_equal(train(record=fake_cuda_graph.record, must_record=True), train())


def test_parts_of_a_batch_add_up() -> None:
    """Compare with frozen statistics, since BatchNorm sees one part at a time."""
    results = []
    for accumulate in (1, 2):
        task = distilling("kd")
        task.model.eval()
        step = step_of(task, OPTIM, 0.02, accumulate=accumulate)
        for number, batch in enumerate(batches(3)):
            step(batch, number)
        results.append(weights(task, step))
    assert_equal(*results, rtol=1e-4, atol=1e-5)


def test_a_step_that_is_not_finite_changes_nothing() -> None:
    task = distilling()
    step = step_of(task, OPTIM, 0.02)
    step(batches(1)[0], 0)
    before = {
        name: value for name, value in weights(task, step).items() if "running" not in name and "num_" not in name
    }
    bad = batches(1)[0]
    bad.images = bad.images * torch.nan
    with pytest.raises(Exception, match="step 2"):
        step(bad, 1)
    after = weights(task, step)
    assert_equal({name: after[name] for name in before}, before)


def on_rank() -> dict[str, Tensor]:
    task = distilling("kd")
    task.model.eval()
    step = step_of(task, OPTIM, 0.02)
    for number, batch in enumerate(batches(2, ranks=distributed.world_size(), rank=distributed.rank())):
        step(batch, number)
    return weights(task, step)


def test_two_ranks_equal_one() -> None:
    (alone,) = on_ranks(1, on_rank)
    for ours in on_ranks(2, on_rank):
        assert_equal(ours, alone, rtol=1e-4, atol=1e-5)


def test_a_loss_of_the_teacher_is_needed() -> None:
    with pytest.raises(ValueError, match=r"optim\.dot needs a loss beside the cross-entropy"):
        distilling("ab")(IMAGES[:4], torch.zeros(4, dtype=torch.int64), torch.arange(4))


def test_other_stages_have_one_momentum() -> None:
    config = cli.parse(["--config", "demo", "--optim.dot", "0.05"])[0]
    assert config.optim_of("distill").dot == 0.05
    assert all(config.optim_of(stage).dot == 0 for stage in ("teacher", "sftn", "student"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--optim.dot 0.1", r"optim\.dot must be at most optim\.momentum"),
        ("--optim.dot 0.2 --optim.momentum 0.1", r"optim\.dot must be at most optim\.momentum"),
        ("--optim.dot 0.05 --optim.nesterov true", r"optim\.nesterov must be false beside optim\.dot"),
        ("--optim.dot 0.05 --optim.clip_grad 1", r"optim\.clip_grad must be null beside optim\.dot"),
        ("--optim.dot 0.05 --engine.compile true", r"engine\.compile must be false beside optim\.dot"),
        ("--optim.dot 0.05 --engine.amp fp16", r"engine\.amp must be fp32 or bf16 beside optim\.dot"),
    ],
)
def test_what_it_can_not_be_combined_with_is_refused(options: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        cli.parse(["--config", "demo", *options.split()])
