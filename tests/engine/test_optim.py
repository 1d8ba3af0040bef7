from __future__ import annotations

import pytest
import torch
from torch import nn

from sftn_fast.config import ConfigError, OptimConfig
from sftn_fast.engine import Layout, Schedule
from sftn_fast.engine.optim import build_sgd, load_optimizer
from sftn_fast.engine.schedule import peak_lr
from sftn_fast.engine.step import TrainStep

from .stubs import Data, make_task


@pytest.mark.parametrize("milestones", [None, (150, 180, 210)])
@pytest.mark.parametrize(
    ("epoch", "expected"),
    [(1, 0.05), (150, 0.05), (151, 0.005), (180, 0.005), (181, 5e-4), (210, 5e-4), (211, 5e-5), (240, 5e-5)],
)
def test_the_learning_rate_drops_after_its_milestones(milestones, epoch, expected):
    schedule = Schedule(OptimConfig(milestones=milestones), 0.05, steps_per_epoch=781, epochs=240)
    first, last = (epoch - 1) * 781, epoch * 781 - 1
    assert schedule(first) == schedule(last) == pytest.approx(expected, rel=1e-12)
    assert schedule.epoch(first) == schedule.epoch(last) == epoch


@pytest.mark.parametrize(("epochs", "expected"), [(240, (150, 180, 210)), (8, (5, 6, 7)), (30, (19, 22, 26))])
def test_default_milestones_scale_with_the_epochs(epochs, expected):
    assert Schedule(OptimConfig(), 0.05, 10, epochs).milestones == expected


@pytest.mark.parametrize("epochs", [1, 2, 3, 5])
def test_a_short_run_starts_at_the_full_rate(epochs):
    assert Schedule(OptimConfig(), 0.05, 10, epochs)(0) == 0.05


@pytest.mark.parametrize(
    ("optim", "step", "expected"),
    [
        ({"schedule": "constant"}, 999, 1.0),
        ({"schedule": "cosine"}, 0, 1.0),
        ({"schedule": "cosine"}, 500, 0.5),
        ({"schedule": "cosine"}, 250, 0.8535533905932737),
        ({"schedule": "cosine"}, 999, 2.4674e-6),
        ({"schedule": "constant", "warmup_epochs": 2}, 0, 0.1),
        ({"schedule": "constant", "warmup_epochs": 2}, 10, 0.55),
        ({"schedule": "constant", "warmup_epochs": 2}, 20, 1.0),
        ({"schedule": "constant", "warmup_epochs": 0.5}, 4, 0.82),
        ({"schedule": "cosine", "warmup_epochs": 2}, 20, 1.0),
        ({"schedule": "cosine", "warmup_epochs": 2}, 510, 0.5),
        ({"schedule": "milestones", "milestones": (1,), "gamma": 0.5}, 10, 0.5),
        ({"schedule": "cosine", "min_lr": 0.2}, 500, 0.6),
        ({"schedule": "cosine", "min_lr": 0.2}, 999, 0.2),
        ({"schedule": "constant", "warmup_epochs": 2, "warmup_lr": 0.0}, 5, 0.25),
        ({"schedule": "cosine", "warmup_epochs": 2, "warmup_lr": 0.5, "min_lr": 0.2}, 10, 0.75),
        ({"schedule": "cosine", "warmup_epochs": 2, "warmup_lr": 0.5, "min_lr": 0.2}, 510, 0.6),
        ({"schedule": "onecycle"}, 0, 0.04),
        ({"schedule": "onecycle", "warmup_epochs": 10, "warmup_lr": 0.3, "min_lr": 0.1}, 0, 0.3),
        ({"schedule": "onecycle", "warmup_epochs": 10, "warmup_lr": 0.3, "min_lr": 0.1}, 99, 1.0),
        ({"schedule": "onecycle", "warmup_epochs": 10, "warmup_lr": 0.3, "min_lr": 0.1}, 999, 0.1),
    ],
)
def test_the_other_schedules(optim, step, expected):
    assert Schedule(OptimConfig(**optim), 1.0, steps_per_epoch=10, epochs=100)(step) == pytest.approx(
        expected, rel=1e-4
    )


@pytest.mark.parametrize(("steps", "epochs"), [(10, 5), (7, 3), (1, 4)])
def test_one_cycle_is_torchs(steps, epochs):
    schedule = Schedule(OptimConfig(schedule="onecycle", lr=0.5, min_lr=0.5 / 25e4), 0.5, steps, epochs)
    sgd = torch.optim.SGD([nn.Parameter(torch.zeros(1))], 0.5)
    torchs = torch.optim.lr_scheduler.OneCycleLR(sgd, 0.5, total_steps=steps * epochs, cycle_momentum=False)
    for step in range(steps * epochs):
        assert schedule(step) == pytest.approx(sgd.param_groups[0]["lr"], rel=1e-9), step
        sgd.step()
        if step + 1 < steps * epochs:
            torchs.step()


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_cycle_of_few_steps_has_a_rate_for_each(steps):
    schedule = Schedule(OptimConfig(schedule="onecycle"), 1.0, steps, 1)
    assert schedule(0) == 1.0 and all(0 <= schedule(step) <= 1 for step in range(steps))


@pytest.mark.parametrize(
    ("optim", "message"),
    [
        ({"min_lr": 0.1}, r"optim\.min_lr must be 0 with optim\.schedule=milestones, got 0\.1"),
        ({"warmup_lr": 0.1}, r"optim\.warmup_lr must be null without optim\.warmup_epochs or optim\.schedule=onecycle"),
        (
            {"schedule": "cosine", "lr": 0.1, "min_lr": 0.2},
            r"optim\.min_lr must be at most the learning rate, 0\.1, got",
        ),
        ({"schedule": "onecycle", "lr": 0.1, "warmup_lr": 0.2}, r"optim\.warmup_lr must be at most the learning rate"),
    ],
)
def test_rates_that_the_schedule_does_not_have_are_refused(optim, message):
    with pytest.raises(ConfigError, match=message):
        OptimConfig(**optim)
    if "lr" in optim:  # or where only the network tells it
        with pytest.raises(ConfigError, match=message):
            peak_lr(OptimConfig(**optim | {"lr": None}), 0.1)


@pytest.mark.parametrize(
    ("optim", "says"),
    [
        ({"schedule": "cosine", "min_lr": 0.01}, "learning rate 0.5, down to 0.01 along a cosine over 10 epochs"),
        ({"name": "AdamW", "schedule": "constant"}, "adamw, learning rate 0.5, constant over 10 epochs"),
        ({"schedule": "onecycle"}, "learning rate 0.5 in one cycle, from 0.02 up in 3 epochs and down to 0 at the end"),
    ],
)
def test_a_schedule_says_what_it_does(optim, says):
    assert Schedule(OptimConfig(**optim), 0.5, 10, 10).describe().startswith(says)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(
    "options",
    [{}, {"nesterov": True}, {"momentum": 0.0}, {"weight_decay": 0.1}, {"clip_grad": 0.05}],
    ids=lambda options: next(iter(options), "default"),
)
def test_the_step_is_torchs_sgd(options, channels_last):
    """Compare with float64 and the plain optimizer: every parameter decays, including adapter, bias and BatchNorm."""
    optim = OptimConfig(lr=0.05, schedule="constant", **options)
    ours, reference = make_task(dropout=0.0), make_task(dropout=0.0).double()
    if channels_last:
        ours.to(memory_format=torch.channels_last)
    layout = Layout(torch.device("cpu"), channels_last=channels_last)
    schedule = Schedule(optim, 0.05, steps_per_epoch=10, epochs=1)
    step = TrainStep(ours, build_sgd(ours, optim, 0.05), schedule, layout, clip_grad=optim.clip_grad)
    sgd = torch.optim.SGD(
        reference.parameters(), 0.05, momentum=optim.momentum, weight_decay=optim.weight_decay,
        nesterov=optim.nesterov, foreach=False,
    )  # fmt: skip
    for number, batch in enumerate(Data().train.epoch(0)):
        terms = step(batch, number)
        logits = reference.model(batch.images.double())
        loss = nn.functional.cross_entropy(logits, batch.target) + 0.1 * reference.adapter(logits).square().mean()
        sgd.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(reference.parameters(), optim.clip_grad or 1e9)
        sgd.step()
        assert terms["total"].item() == pytest.approx(loss.item(), rel=1e-4)
        assert terms["grad_norm"].item() == pytest.approx(norm.item(), rel=1e-3)
    for (name, mine), theirs in zip(ours.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(mine.double(), theirs, rtol=1e-3, atol=1e-5, msg=name)


def test_only_what_requires_grad_learns():
    task = make_task()
    for parameter in task.model[0].parameters():
        parameter.requires_grad_(False)
    sgd = build_sgd(task, OptimConfig(), 0.1)
    assert len(sgd.param_groups[0]["params"]) == len(list(task.parameters())) - 1
    for parameter in task.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(ValueError, match="nothing to train"):
        build_sgd(task, OptimConfig(), 0.1)


def test_loaded_momentum_takes_the_parameters_memory_format():
    def weight(memory_format: torch.memory_format) -> nn.Parameter:
        return nn.Parameter(torch.arange(24.0).view(2, 3, 2, 2).to(memory_format=memory_format))

    class Holder(nn.Module):
        def __init__(self, memory_format: torch.memory_format):
            super().__init__()
            self.weight = weight(memory_format)

    stored, other = Holder(torch.contiguous_format), Holder(torch.channels_last)
    sgds = [build_sgd(holder, OptimConfig(weight_decay=0), 0.1) for holder in (stored, other)]
    momentum = torch.randn(2, 3, 2, 2)
    sgds[0].state[stored.weight]["momentum_buffer"].copy_(momentum)
    load_optimizer(sgds[1], sgds[0].state_dict())
    for holder, sgd in zip((stored, other), sgds, strict=True):
        holder.weight.grad = torch.zeros_like(holder.weight)
        sgd.step()
    assert torch.equal(stored.weight, other.weight)
