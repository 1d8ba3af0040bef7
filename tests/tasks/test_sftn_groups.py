"""Settings of the optimizer that the branches of a student-friendly teacher have for themselves."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from engine import fake_cuda_graph
from torch import Tensor

from sftn_fast import models
from sftn_fast.config import Config, ConfigError, OptimConfig, SFTNConfig
from sftn_fast.data import Batch
from sftn_fast.engine import Layout, Schedule
from sftn_fast.engine.optim import FACTOR, build_optimizer
from sftn_fast.engine.optimizer_classes import check_weight_decay, optimizers
from sftn_fast.engine.state import TrainState
from sftn_fast.engine.step import TrainStep
from sftn_fast.experiment.plan import plan
from sftn_fast.sftn import StudentAwareTeacher
from sftn_fast.tasks import SFTNTask

SIZE, CLASSES = 8, 5
NAMES = [name.lower() for name in optimizers()]


def make_task(config: SFTNConfig, seed: int = 0) -> SFTNTask:
    torch.manual_seed(seed)
    nets = [models.build(name, num_classes=CLASSES) for name in ("wrn_16_1", "resnet8")]
    return SFTNTask(StudentAwareTeacher(*nets, image_size=SIZE, share_student=config.share_student), config).train()


def step_of(task: SFTNTask, optim: OptimConfig, **options: Any) -> TrainStep:
    schedule = Schedule(optim, optim.lr or 0.01, steps_per_epoch=4, epochs=2)
    return TrainStep(task, build_optimizer(task, optim, schedule(0)), schedule, Layout(torch.device("cpu")), **options)


def batches(count: int) -> list[Batch]:
    generator = torch.Generator().manual_seed(0)
    index = torch.arange(8)
    return [Batch(torch.randn(8, 3, SIZE, SIZE, generator=generator), index % CLASSES, index) for _ in range(count)]


def trained(config: SFTNConfig, optim: OptimConfig, steps: int = 3, **options: Any) -> SFTNTask:
    task = make_task(config)
    step = step_of(task, optim, **options)
    for number, batch in enumerate(batches(steps)):
        step(batch, number)
    return task


def weights(task: SFTNTask, *, branches: bool) -> dict[str, Tensor]:
    named = task.named_parameters()
    return {name: p.detach() for name, p in named if name.startswith("student_aware.branches.") is branches}


def equal(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> list[bool]:
    assert ours.keys() == theirs.keys() and ours
    return [torch.equal(value, theirs[name]) for name, value in ours.items()]


def optim_of(name: str, **options: Any) -> OptimConfig:
    return OptimConfig(**{"name": name, "lr": 0.01, "schedule": "cosine", "warmup_epochs": 0.5, **options})


@pytest.mark.parametrize("decay", [True, False])
def test_by_default_the_groups_are_those_of_any_task(decay: bool) -> None:
    task = make_task(SFTNConfig())
    groups = build_optimizer(task, OptimConfig(decay_norms_and_biases=decay), 0.1).param_groups
    assert len(groups) == (1 if decay else 2) and not any(FACTOR in group for group in groups)
    if decay:
        assert [id(p) for p in groups[0]["params"]] == [id(p) for p in task.parameters()]


@pytest.mark.parametrize(("name", "share"), [("sgd", True), *((name, False) for name in NAMES if name != "rprop")])
def test_a_rate_of_0_leaves_the_branches_and_the_teacher_learns(name: str, share: bool) -> None:
    config = SFTNConfig(branch_lr=0.0, share_student=share)
    start, task = make_task(config), trained(config, optim_of(name))
    assert all(equal(weights(task, branches=True), weights(start, branches=True)))
    assert not any(equal(weights(task, branches=False), weights(start, branches=False)))


@pytest.mark.parametrize("name", NAMES)
def test_a_factor_is_a_rate_of_their_own(name: str) -> None:
    """After one step, before the other weights act on them, the branches are those of a training of that rate."""
    half, whole = (optim_of(name, lr=lr, schedule="constant", warmup_epochs=0.0) for lr in (0.01, 0.02))
    ours, slow, fast = (
        trained(SFTNConfig(branch_lr=0.5), whole, 1),
        *(trained(SFTNConfig(), o, 1) for o in (half, whole)),
    )
    # 0.02 * 0.5 is exactly 0.01, up to fused kernels that join or split what is multiplied.
    for name_, value in weights(ours, branches=True).items():
        torch.testing.assert_close(value, weights(slow, branches=True)[name_], rtol=1e-6, atol=1e-8)
    assert not all(equal(weights(ours, branches=True), weights(fast, branches=True)))
    assert all(equal(weights(ours, branches=False), weights(fast, branches=False)))


@pytest.mark.parametrize("decay", [True, False])
@pytest.mark.parametrize("name", ["sgd", "adamw", "rmsprop"])
def test_weight_decay_reaches_the_branches_alone(name: str, decay: bool) -> None:
    optim = optim_of(name, weight_decay=0.001, decay_norms_and_biases=decay, warmup_epochs=0.0)
    plain, ours = trained(SFTNConfig(), optim, 1), trained(SFTNConfig(branch_weight_decay=0.5), optim, 1)
    assert all(equal(weights(ours, branches=False), weights(plain, branches=False)))
    apart = weights(ours, branches=True)
    same = dict(zip(apart, equal(apart, weights(plain, branches=True)), strict=True))
    exempt = {name for name, value in apart.items() if value.ndim <= 1 and not decay}
    zero = {name for name, value in weights(make_task(SFTNConfig()), branches=True).items() if not value.any()}
    assert {name for name in same if same[name]} - zero == exempt - zero
    assert len(exempt | zero) < len(same)


@pytest.mark.parametrize("name", NAMES)
def test_all_groups_follow_the_schedule(name: str) -> None:
    task, optim = make_task(SFTNConfig(branch_lr=0.25, branch_weight_decay=0.0)), optim_of(name)
    step = step_of(task, optim)
    for number, batch in enumerate(batches(4)):
        step(batch, number)
        rates = [float(group["lr"]) for group in step.optimizer.param_groups]
        assert rates == pytest.approx([step.schedule(number), 0.25 * step.schedule(number)], rel=1e-6)
    assert step.schedule(3) != step.schedule(0)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_a_recorded_step_is_the_same(name: str) -> None:
    config, optim = SFTNConfig(branch_lr=0.25, branch_weight_decay=0.1), optim_of(name)
    plain, replayed = trained(config, optim, 5), trained(config, optim, 5, record=fake_cuda_graph.record)
    assert all(equal(dict(replayed.state_dict()), dict(plain.state_dict())))


@pytest.mark.parametrize("name", ["sgd", "nadam"])
def test_it_resumes_with_the_same_bits(name: str) -> None:
    config = SFTNConfig(branch_lr=0.25, branch_weight_decay=0.1, share_student=True)
    optim = optim_of(name, decay_norms_and_biases=False)
    whole, broken = (step_of(make_task(config), optim) for _ in range(2))
    for number, batch in enumerate(batches(4)):
        whole(batch, number)
        if number < 2:
            broken(batch, number)
    saved = copy.deepcopy(TrainState(broken.module, broken).state_dict(0))
    again = step_of(make_task(config, seed=9), optim)
    TrainState(again.module, again).load_state_dict(saved)
    for number, batch in enumerate(batches(4)):
        if number >= 2:
            again(batch, number)
    assert all(equal(dict(again.module.state_dict()), dict(whole.module.state_dict())))


def test_what_rprop_can_not_do_is_refused() -> None:
    optim = OptimConfig(name="rprop")
    with pytest.raises(ConfigError, match=r"sftn\.branch_lr must be greater than 0 with optim\.name=rprop"):
        plan(Config(stages=("sftn",), optim=optim, sftn=SFTNConfig(branch_lr=0.0)))
    with pytest.raises(ConfigError, match=r"sftn\.branch_weight_decay must be null or 0 with Rprop"):
        check_weight_decay("sftn.branch_weight_decay", 0.1, optim)
