"""Any optimizer: as torch's own, skipped and resumed without a trace, replayed, and refused in one line."""

from __future__ import annotations

import copy
import dataclasses
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sftn_fast import cli, data, train
from sftn_fast.config import ConfigError, DataConfig, EmaConfig, OptimConfig
from sftn_fast.engine import Interrupted, Layout, Schedule, distributed
from sftn_fast.engine.checkpoint_content import check_content
from sftn_fast.engine.optim import build_optimizer, runs_on_device
from sftn_fast.engine.optimizer_classes import check_optimizer, optimizers
from sftn_fast.engine.schedule import peak_lr
from sftn_fast.engine.state import TrainState
from sftn_fast.engine.step import TrainStep

from . import fake_cuda_graph
from .ranks import on_ranks
from .stubs import Data, StoppingLoader, TinyTask, make_task, run_fit, without_timing

NAMES = [name for name in optimizers() if name != "SGD"]
ARGUMENTS: dict[str, dict[str, Any]] = {
    "AdamW": {"betas": (0.8, 0.95), "amsgrad": True},
    "RMSprop": {"momentum": 0.5, "centered": True},
    "ASGD": {"t0": 2.0},
    "Adafactor": {"eps": (None, 0.01)},
}


def optim_of(name: str, **options: Any) -> OptimConfig:
    return OptimConfig(name=name, lr=0.01, schedule="cosine", arguments=ARGUMENTS.get(name, {}), **options)


def step_of(task: nn.Module, optim: OptimConfig, **options: Any) -> TrainStep:
    schedule = Schedule(optim, 0.01, steps_per_epoch=10, epochs=1)
    return TrainStep(task, build_optimizer(task, optim, schedule(0)), schedule, Layout(torch.device("cpu")), **options)


def everything(step: TrainStep) -> dict[str, Tensor]:
    states = enumerate(step.optimizer.state.values())
    state = {f"{key}{number}": value for number, values in states for key, value in values.items()}
    return copy.deepcopy({**step.module.state_dict(), **state})


def assert_equal(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    assert [name for name, value in ours.items() if not torch.equal(value, theirs[name])] == []


@pytest.mark.parametrize("name", NAMES)
def test_the_step_is_torchs(name: str) -> None:
    """Compare with the class as torch documents it: a float as learning rate, state from its first step."""
    ours, reference = make_task(dropout=0.0), make_task(dropout=0.0)
    step = step_of(ours, optim_of(name))
    before = {id(value) for values in step.optimizer.state.values() for value in values.values()}
    plain = getattr(torch.optim, name)(reference.parameters(), lr=step.schedule(0), **ARGUMENTS.get(name, {}))
    for number, batch in enumerate(Data().train.epoch(0)):
        step(batch, number)
        for group in plain.param_groups:
            group["lr"] = step.schedule(number)
        plain.zero_grad()
        reference(batch.images, batch.target, batch.index)["total"].backward()
        plain.step()
    for (label, mine), theirs in zip(ours.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5, msg=label)
    # In place, where a rollback, an undone step and a graph find it.
    assert {id(value) for values in step.optimizer.state.values() for value in values.values()} == before != set()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("first", [True, False])
def test_a_skipped_step_leaves_no_trace(name: str, first: bool) -> None:
    step = step_of(make_task(), optim_of(name))
    batch = next(Data().train.epoch(0))
    if not first:
        step(batch, 0)
    before = everything(step)
    batch.images = batch.images * torch.nan
    with pytest.raises(Exception, match="not finite"):
        step(batch, 1)
    after = everything(step)
    assert_equal(
        *({k: v for k, v in each.items() if "running" not in k and "tracked" not in k} for each in (after, before))
    )


def test_an_undone_step_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU, a class without a fused kernel is undone on the device; it needs no GPU to show that."""
    monkeypatch.setattr("sftn_fast.engine.update.runs_on_device", lambda optimizer: True)
    test_a_skipped_step_leaves_no_trace("RMSprop", False)
    test_a_skipped_step_leaves_no_trace("Adagrad", True)
    test_the_step_is_torchs("RMSprop")


@pytest.mark.parametrize("name", NAMES)
def test_it_resumes(name: str) -> None:
    whole, broken = step_of(make_task(dropout=0.0), optim_of(name)), step_of(make_task(dropout=0.0), optim_of(name))
    batches = list(Data().train.epoch(0))
    for number, batch in enumerate(batches[:4]):
        whole(batch, number)
        if number < 2:
            broken(batch, number)
    saved = copy.deepcopy(TrainState(broken.module, broken).state_dict(0))
    task = make_task(seed=9, dropout=0.0)
    again = step_of(task, optim_of(name))
    TrainState(task, again).load_state_dict(saved)
    for number in (2, 3):
        again(batches[number], number)
    assert_equal(everything(again), everything(whole))
    del saved["optimizer"]["state"][0]
    with pytest.raises(ValueError, match=r" 0 is missing"):
        check_content(saved, task, again.optimizers)


ADAMW = {"name": "adamw", "decay_norms_and_biases": False, "clip_grad": 1.0, "schedule": "cosine", "warmup_epochs": 0.5}


@pytest.mark.parametrize("amp", ["fp32", "fp16"])
@pytest.mark.parametrize("name", ["adamw", "nadam"])
def test_a_run_stopped_in_mid_epoch_ends_with_the_same_bits(tmp_path: Path, amp: str, name: str) -> None:
    options = {"optim": ADAMW | {"name": name}, "engine": {"amp": amp}}
    whole, task = make_task(), make_task(seed=9)
    expected = run_fit(tmp_path / "unbroken", task=whole, **options)
    stopped = Data()
    stopped.train = StoppingLoader(stopped.train, 13, signal.SIGTERM)
    with pytest.raises(Interrupted):
        run_fit(tmp_path / "broken", data=stopped, **options)
    result = run_fit(tmp_path / "broken", task=task, **options)
    assert result.resumed_from == 13
    assert_equal(task.state_dict(), whole.state_dict())
    assert [*map(without_timing, result.history)] == [*map(without_timing, expected.history)]


def stop_and_resume(folder: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the weights after an unbroken run with AdamW, an average and mixed images, and after a broken one.

    The second is stopped in its second epoch, and resumes with other weights.
    """
    config = DataConfig("fake", train_size=16, image_size=8, cutmix=1.0)
    share = {"rank": distributed.rank(), "world_size": distributed.world_size()}
    images = data.build(config, seed=0, batch_size=8, device="cpu", **share).mixed()
    options = {"optim": ADAMW, "ema": EmaConfig(0.9)}

    def train(name: str, batches: Any, seed: int) -> dict[str, Tensor]:
        task = make_task(seed=seed, classes=10)
        result = run_fit(folder / name, data=batches, task=task, **options)
        return {**task.state_dict(), **{f"ema.{key}": value for key, value in (result.ema_weights or {}).items()}}

    whole = train("whole", images, seed=0)
    with pytest.raises(Interrupted):
        train("broken", dataclasses.replace(images, train=StoppingLoader(images.train, 3, signal.SIGTERM)), seed=0)
    return whole, train("broken", images, seed=9)


def test_two_ranks_stopped_in_mid_epoch_end_with_the_same_bits(tmp_path: Path) -> None:
    main, other = on_ranks(2, stop_and_resume, tmp_path)
    for whole, again in (main, other):
        assert_equal(again, whole)
    assert {name for name in main[0] if name.startswith("ema.")}  # which the main rank alone exports


@pytest.mark.parametrize("name", ["Adam", "AdamW", "Adagrad"])
def test_a_recorded_step_is_the_same(name: str) -> None:
    steps = [step_of(make_task(), optim_of(name), **options) for options in ({}, {"record": fake_cuda_graph.record})]
    for step in steps:
        assert runs_on_device(step.optimizer)
        torch.manual_seed(4)
        for number, batch in enumerate(Data().train.epoch(0)):
            step(batch, number)
    assert_equal(*map(everything, steps))


def test_what_reads_on_the_host_runs_without_a_graph(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr("sftn_fast.engine.step.recorder", lambda choice, device: fake_cuda_graph.record)
    run_fit(tmp_path / "run", epochs=1, optim={"name": "adafactor"})
    said = capsys.readouterr().err
    assert said == "engine.cuda_graphs: steps run without a graph; Adafactor reads its state on the host\n"
    with pytest.raises(ConfigError, match=r"engine\.cuda_graphs must be auto or false with Adafactor"):
        run_fit(tmp_path / "must", epochs=1, optim={"name": "adafactor"}, engine={"cuda_graphs": True})


class WithEmbedding(TinyTask):
    def __init__(self) -> None:
        super().__init__()
        self.model.positions = nn.Parameter(torch.zeros(1, 4, 4))
        self.model.no_weight_decay = lambda: {"positions"}


@pytest.mark.parametrize("name", ["sgd", "adamw", "adadelta"])
def test_norms_and_biases_need_not_decay(name: str) -> None:
    task = WithEmbedding()
    optim = OptimConfig(name=name, weight_decay=0.1, decay_norms_and_biases=False)
    decaying, free = build_optimizer(task, optim, 0.1).param_groups
    assert decaying["weight_decay"] == 0.1 and free["weight_decay"] == 0
    named = {id(parameter): key for key, parameter in task.named_parameters()}
    assert [named[id(p)] for p in decaying["params"]] == ["model.0.weight", "model.6.weight", "adapter.weight"]
    assert {named[id(p)] for p in free["params"]} == {
        *("model.positions", "model.1.weight", "model.1.bias", "model.6.bias", "adapter.bias")
    }


def test_the_learning_rate_is_the_networks_in_sgd_and_else_the_classs() -> None:
    assert peak_lr(OptimConfig(), 0.05) == 0.05 and peak_lr(OptimConfig(lr=0.2), 0.05) == 0.2
    assert peak_lr(OptimConfig(name="AdamW"), 0.05) == 0.001 and peak_lr(OptimConfig(name="adadelta"), 0.05) == 1
    assert peak_lr(OptimConfig(name="adamw", lr=0.2, batch_size=128, lr_scale="linear"), 0.05) == 0.4
    build = build_optimizer(make_task(), OptimConfig(name="adamw"), 0.1)
    assert build.defaults["weight_decay"] == 0.01 and build.defaults["fused"]
    assert OptimConfig().weight_decay == 5e-4 and OptimConfig(name="SGD") == OptimConfig()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--optim.name adamx", r"optim\.name must be one of ASGD, .*RMSprop, .*got 'adamx'; did you mean Adam"),
        ("--optim.name lbfgs", r"optim\.name must be one of .*got 'LBFGS', which calls the loss several times"),
        ("--optim.name SparseAdam", r"got 'SparseAdam', which takes sparse gradients alone"),
        ("--optim.name muon", r"got 'Muon', which takes matrices alone"),
        ("--optim.name optimizer", r"optim\.name must be one of"),
        ("--optim.name adamw --optim.arguments.beta 0.9", r"beta is no argument of AdamW, which has: betas, eps, ams"),
        ("--optim.name adamw --optim.arguments.lr 0.9", r"arguments\.lr is set by optim\.lr, not by"),
        ("--optim.name adamw --optim.arguments.fused true", r"arguments\.fused is no argument of AdamW"),
        ("--optim.name adamw --optim.arguments.betas 0.9", r"betas must be 2 numbers, as in \[0\.9,0\.999\]"),
        ("--optim.name adamw --optim.arguments.betas [0.9,1]", r"optim\.arguments: AdamW refuses .*Invalid beta par"),
        ("--optim.name adamw --optim.arguments.eps true", r"arguments\.eps must be a number, as in 1e-08, got True"),
        ("--optim.name adamw --optim.arguments.amsgrad 1", r"arguments\.amsgrad must be true or false, got 1"),
        ("--optim.name rprop --optim.weight_decay 0.1", r"optim\.weight_decay must be null or 0 with Rprop"),
    ],
)  # fmt: skip
def test_what_no_class_takes_is_refused(options: str, message: str) -> None:
    config = cli.parse(["--config", "demo", *options.split()])[0]
    with pytest.raises(ConfigError, match=message) as caught:
        check_optimizer(config.optim)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--optim.arguments.betas [0.9,0.9]", r"optim\.arguments must be left out with sgd, whose settings are"),
        ("--optim.name adamw --optim.momentum 0.8", r"optim\.momentum must be left out with optim\.name=adamw"),
        ("--optim.name adamw --optim.nesterov true", r"optim\.nesterov must be left out with optim\.name=adamw"),
        ("--optim.name adamw --optim.dot 0.05", r"optim\.dot must be left out with optim\.name=adamw"),
        ("--optim.name adamw --optim.arguments.eps .nan", r"optim\.arguments must be a finite number, got nan"),
    ],
)
def test_settings_of_another_optimizer_are_refused(options: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        cli.parse(["--config", "demo", *options.split()])


def test_a_run_is_refused_before_it_begins(tmp_path: Path, capsys) -> None:
    assert train.main(["--optim.name", "adamx", "--output", str(tmp_path / "run")]) == 2
    assert capsys.readouterr().err.count("\n") == 1 and not (tmp_path / "run").exists()


def test_another_optimizer_takes_nothing_of_the_recipes(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("base: imagenet\noptim: {name: adamw, arguments: {eps: 1.0e-6}}\n")
    mine = cli.parse(["--config", str(recipe)])[0].optim
    assert (mine.lr, mine.weight_decay, mine.arguments, mine.batch_size) == (None, None, {"eps": 1e-6}, 256)
    more = cli.parse(["--config", str(recipe), "--optim.name", "AdamW", "--optim.arguments.amsgrad", "true"])[0].optim
    assert more.arguments == {"eps": 1e-6, "amsgrad": True}
    back = cli.parse(["--config", str(recipe), "--optim.name", "sgd", "--optim.lr", "0.2"])[0].optim
    assert (back.lr, back.weight_decay, back.arguments) == (0.2, 5e-4, {})
    assert cli.parse(["--config", "imagenet", "--optim.name", "SGD"])[0].optim.lr == 0.1
