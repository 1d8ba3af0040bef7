"""Values that are not finite never reach the weights, the BatchNorm statistics or a checkpoint."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from sftn_fast.config import OptimConfig
from sftn_fast.engine import Layout, NonFiniteError, Schedule
from sftn_fast.engine.optim import build_sgd
from sftn_fast.engine.step import TrainStep

from .stubs import Data, TinyTask, TrainLoader, make_task, run_fit

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class InfiniteGradient(torch.autograd.Function):
    """Identity with an infinite gradient."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return grad * math.inf


class FaultyTask(TinyTask):
    """Task that makes the error ``fault`` at the calls, counted from 1, in ``when``."""

    def __init__(self, fault: str, when: set[int]):
        super().__init__()
        self.fault, self.when, self.calls = fault, when, 0

    def forward(self, images: Tensor, target: Tensor, index: Tensor) -> dict[str, Tensor]:
        self.calls += 1
        fault = self.fault if self.calls in self.when else None
        if fault == "images":
            images = images * 1e30
            images[0, 0, 0, 0] = math.inf
        terms = super().forward(images, target, index)
        if fault == "term":
            terms |= {"total": terms["total"] + math.nan, "hint": terms["hint"] * math.nan}
        if fault == "gradient":
            terms["total"] = InfiniteGradient.apply(terms["total"])
        return terms


def step_for(task: nn.Module, amp: str, **options) -> TrainStep:
    optim = OptimConfig(lr=0.05, **options)
    schedule = Schedule(optim, 0.05, steps_per_epoch=10, epochs=9)
    return TrainStep(task, build_sgd(task, optim, 0.05), schedule, Layout(torch.device("cpu"), DTYPES[amp]))


def everything(step: TrainStep) -> dict[str, Tensor]:
    momentum = {f"momentum{i}": entry["momentum_buffer"] for i, entry in enumerate(step.optimizer.state.values())}
    return copy.deepcopy({**step.task.state_dict(), **momentum})


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


def weights_of(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if "running" not in name and "tracked" not in name}


@pytest.mark.parametrize("amp", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("fault", "named", "unnamed"),
    [("images", {"total", "ce", "grad_norm"}, set()), ("term", {"total", "hint"}, {"ce"}),
     ("gradient", {"grad_norm"}, {"total", "ce", "hint"})],
)  # fmt: skip
def test_training_stops_before_the_update_and_names_what_was_wrong(tmp_path: Path, amp, fault, named, unnamed):
    task = FaultyTask(fault, when={14})
    before: list[dict] = []
    task.register_forward_pre_hook(lambda module, args: before.append(copy.deepcopy(module.state_dict())))
    with pytest.raises(NonFiniteError, match=r"at step 14, epoch 2, lr 0\.005; stopped before the update") as caught:
        run_fit(tmp_path, task=task, engine={"amp": amp, "checkpoint_every": 4})
    assert isinstance(caught.value, FloatingPointError)
    assert caught.value.step == 14
    assert named <= caught.value.terms.keys() and not unnamed & caught.value.terms.keys()
    assert all(name in str(caught.value) for name in named)
    assert_same(weights_of(task.state_dict()), weights_of(before[-1]))
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step_000000008", "step_000000012"]


@pytest.fixture
def read_late(monkeypatch):
    """As on a GPU: a step does not look at its own verdict, only the loop does, later."""
    call, check, inside = TrainStep.__call__, TrainStep.check, []

    def late_call(self, *arguments):
        inside.append(True)
        terms = call(self, *arguments)
        inside.pop()
        return terms

    monkeypatch.setattr(TrainStep, "__call__", late_call)
    monkeypatch.setattr(TrainStep, "check", lambda self: None if inside else check(self))


@pytest.mark.parametrize(
    ("when", "every", "log_every", "kept"), [(6, 4, 100, [4]), (9, None, 100, []), (6, 100, 2, []), (17, 8, 5, [8, 16])]
)
def test_read_late_a_failure_never_becomes_a_checkpoint(tmp_path, read_late, when, every, log_every, kept):
    task = FaultyTask("gradient", when={when})
    with pytest.raises(NonFiniteError, match=f"at step {when}, epoch"):
        run_fit(tmp_path, task=task, engine={"checkpoint_every": every, "log_every": log_every})
    assert sorted(int(path.name[5:]) for path in (tmp_path / "checkpoints").iterdir()) == kept
    lines = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert [line["step"] for line in lines if line["step"] >= when] == []  # nor a row of the history


@pytest.mark.parametrize("fault", ["images", "term", "gradient"])
def test_read_late_the_weights_are_still_those_before_the_failure(read_late, fault):
    task = FaultyTask(fault, when={3})
    step = step_for(task, "fp32")
    batches = list(Data().train.epoch(0))
    for number in range(2):
        step(batches[number], number)
    good = everything(step)
    skipped = [step(batches[number], number)["skipped"].item() for number in range(2, 7)]
    assert skipped == [1.0] * 5
    assert_same(weights_of(everything(step)), weights_of(good))
    with pytest.raises(NonFiniteError, match="at step 3, epoch 1") as caught:
        step.check()
    assert caught.value.step == 3


@pytest.mark.parametrize("fault", ["images", "term", "gradient"])
@pytest.mark.parametrize("when", [1, 3])
def test_a_step_skipped_in_fp16_leaves_no_trace(fault, when):
    step = step_for(FaultyTask(fault, when={when}), "fp16")
    batches = list(Data().train.epoch(0))
    for number in range(5):
        before = everything(step)
        terms = step(batches[number], number)
        assert terms["skipped"].item() == (number + 1 == when)
        if number + 1 == when:
            assert_same(everything(step), before)  # weights, momentum, BatchNorm's running statistics and their count
        else:
            assert not torch.equal(everything(step)["model.0.weight"], before["model.0.weight"])
    step.check()
    assert all(torch.isfinite(value).all() for value in everything(step).values())


def test_a_skipped_first_step_leaves_no_uninitialised_momentum(monkeypatch, request):
    """Compare with a run without that step. torch's own fused SGD would continue from uninitialised memory.

    Deterministic algorithms fill new memory with NaN, so that this does not pass by luck.
    """
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    request.addfinalizer(lambda: torch.use_deterministic_algorithms(False))
    torch.use_deterministic_algorithms(True)
    batches = list(Data().train.epoch(0))
    results = []
    for when in ({1}, set()):
        torch.manual_seed(5)
        task = FaultyTask("gradient", when)
        step = step_for(task, "fp16")
        for number in [0, 1, 2] if when else [1, 2]:
            torch.manual_seed(number)
            step(batches[number], number)
        results.append(weights_of(everything(step)))
    for name in results[0]:
        torch.testing.assert_close(results[0][name], results[1][name], rtol=1e-3, atol=1e-5)


def test_skipped_steps_are_counted_and_kept_out_of_the_means(tmp_path):
    result = run_fit(tmp_path, task=FaultyTask("images", when={2, 5, 13}), engine={"amp": "fp16", "log_every": 5})
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    train = [line for line in lines if line["kind"] == "train"]
    assert [line["skipped"] for line in train] == [2, 0, 1, 0]
    assert [row["train_skipped"] for row in result.history] == [2, 1]
    assert all(math.isfinite(line["total"]) and math.isfinite(line["grad_norm"]) for line in train)
    assert [line["loss_scale"] for line in train] == [2**14, 2**14, 2**13, 2**13]
    assert math.isfinite(result.last["test_ce"])


def test_fp16_gives_up_when_scaling_is_no_cure(tmp_path):
    task = FaultyTask("images", when=set(range(6, 100)))
    with pytest.raises(NonFiniteError, match=r"at step 25, epoch 3, lr .*, loss scale") as caught:
        run_fit(tmp_path, task=task, epochs=5, engine={"amp": "fp16"})
    assert "total" in caught.value.terms
    assert all(torch.isfinite(value).all() for value in task.state_dict().values())


def test_an_evaluation_that_is_not_finite_is_null_in_json(tmp_path):
    data = Data()
    data.test.images[0] = math.inf
    result = run_fit(tmp_path, data=data, epochs=1)
    assert math.isnan(result.last["test_ce"])
    last = (tmp_path / "metrics.jsonl").read_text().splitlines()[-1]
    assert json.loads(last, parse_constant=pytest.fail)["test_ce"] is None


def test_the_loader_of_these_tests_is_a_pure_function():
    loader: TrainLoader = Data().train
    late, whole = list(loader.epoch(1, 4)), list(loader.epoch(1))
    assert all(torch.equal(a.images, b.images) for a, b in zip(late, whole[4:], strict=True))
    assert make_task().adapter.weight.requires_grad
