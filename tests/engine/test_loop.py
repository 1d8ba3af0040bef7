from __future__ import annotations

import csv
import json
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from sftn_fast.config import ConfigError
from sftn_fast.engine import device as device_module
from sftn_fast.engine import resolve_device

from .stubs import Data, TinyTask, make_task, run_fit


@pytest.mark.parametrize("amp", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_it_learns(tmp_path, amp, channels_last):
    result = run_fit(tmp_path, epochs=4, engine={"amp": amp, "channels_last": channels_last})
    assert result.history[-1]["train_ce"] < 0.85 * result.history[0]["train_ce"]
    assert result.last["test_top1"] > 35  # chance is 17
    assert result.images_per_second > 0 and 0 < result.data_wait_share < 1
    assert result.resumed_from is None


def test_what_is_written(tmp_path, capsys):
    result = run_fit(tmp_path, data=Data(with_val=True), epochs=3, engine={"log_every": 4})
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["kind"], line["epoch"], line["step"]) for line in lines] == [
        ("train", 1, 4), ("train", 1, 8), ("epoch", 1, 10), ("train", 2, 12), ("train", 2, 16), ("train", 2, 20),
        ("epoch", 2, 20), ("train", 3, 24), ("train", 3, 28), ("epoch", 3, 30),
    ]  # fmt: skip
    train = {"kind", "epoch", "step", "lr", "total", "ce", "hint", "grad_norm", "images_per_second", "data_wait"}
    assert train | {"seconds"} == lines[0].keys()
    rows = list(csv.DictReader((tmp_path / "summary.csv").open()))
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    for row, record in zip(rows, result.history, strict=True):
        assert row.keys() == record.keys() >= {"val_top1", "val_ce", "test_top1", "test_top5", "test_ce", "train_total"}
        assert {name: float(value) for name, value in row.items()} == record
    assert result.last == result.history[-1]
    assert result.best["val_top1"] == max(row["val_top1"] for row in result.history)
    out, err = capsys.readouterr()
    assert out.count("images/s") == 7 and out.count("done") == 3
    assert err == ""  # no progress bar where there is no terminal


def test_means_are_over_the_steps_since_the_last_line(tmp_path):
    run_fit(tmp_path / "each", engine={"log_every": 1})
    run_fit(tmp_path / "fourth", engine={"log_every": 4})

    def lines(name: str, kind: str) -> list[dict]:
        records = map(json.loads, (tmp_path / name / "metrics.jsonl").read_text().splitlines())
        return [record for record in records if record["kind"] == kind]

    each = [line["total"] for line in lines("each", "train")]
    fourth = [line["total"] for line in lines("fourth", "train")]
    assert fourth == pytest.approx([sum(each[i : i + 4]) / 4 for i in range(0, 20, 4)], rel=1e-12)
    epochs = [line["train_total"] for line in lines("each", "epoch")]
    assert epochs == pytest.approx([sum(each[:10]) / 10, sum(each[10:]) / 10], rel=1e-12)


def test_speed_is_that_of_training_alone(tmp_path, monkeypatch):
    """Use a clock that only loaders and steps advance: 0.5 s to wait for a batch, a day for an evaluation."""
    now, data = [0.0], Data()

    def slow(batches, seconds):
        for batch in batches:
            now[0] += seconds
            yield batch

    epoch, test = data.train.epoch, list(data.test)
    data.train.epoch = lambda *position: slow(epoch(*position), 0.5)
    data.test = type("Slow", (), {"__iter__": lambda self: slow(test, 86_400)})()
    task = make_task()
    task.register_forward_hook(lambda *_: now.__setitem__(0, now[0] + 1.5))
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    result = run_fit(tmp_path, task=task, data=data, engine={"log_every": 4})
    assert [row["seconds"] for row in result.history] == [20, 20]
    assert result.images_per_second == result.last["images_per_second"] == 4
    assert result.data_wait_share == result.last["data_wait"] == 0.25
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert {line["images_per_second"] for line in lines} == {4}


@pytest.mark.parametrize(("every", "evaluated"), [(1, [1, 2, 3, 4, 5]), (2, [2, 4, 5]), (9, [5])])
def test_the_last_epoch_is_always_evaluated(tmp_path, every, evaluated):
    result = run_fit(tmp_path, epochs=5, engine={"eval_every": every})
    assert [row["epoch"] for row in result.history if "test_top1" in row] == evaluated
    assert "test_top1" in result.best
    rows = list(csv.DictReader((tmp_path / "summary.csv").open()))
    assert [int(row["epoch"]) for row in rows if row["test_top1"]] == evaluated


@pytest.mark.parametrize(("every", "kept"), [(None, [20, 10]), (3, [20, 18]), (10, [20, 10]), (99, [20])])
def test_checkpoints_are_written_when_due_and_at_the_end(tmp_path, every, kept):
    run_fit(tmp_path, engine={"checkpoint_every": every})
    names = sorted((path.name for path in (tmp_path / "checkpoints").iterdir()), reverse=True)
    assert names == [f"step_{step:09d}" for step in kept]


@pytest.mark.parametrize(
    ("optim", "given", "used"),
    [
        ({}, None, 0.05),
        ({"lr": None}, 0.01, 0.01),
        ({"lr": None}, None, 0.05),
        ({"lr": 0.2}, 0.01, 0.2),
        ({"lr": 0.2, "lr_scale": "linear"}, None, 0.025),  # 8 images a step instead of 64
        ({"lr": None, "lr_scale": "linear", "base_batch_size": 16}, 0.01, 0.005),
    ],
)
def test_which_learning_rate_counts(tmp_path, optim, given, used):
    assert run_fit(tmp_path, epochs=1, optim=optim, lr=given).last["lr"] == used


def test_the_same_seed_gives_the_same_run(tmp_path):
    totals = []
    for number, seed in enumerate([3, 3, 4]):
        torch.rand(number)
        totals.append(run_fit(tmp_path / str(number), seed=seed, epochs=1).last["train_total"])
    assert totals[0] == totals[1] != totals[2]


def test_frozen_parts_stay_and_the_adapter_learns(tmp_path):
    task = make_task()
    task.model[0].weight.requires_grad_(False)
    before = {name: value.clone() for name, value in task.state_dict().items()}
    run_fit(tmp_path, task=task, epochs=1)
    changed = {name for name, value in task.state_dict().items() if not torch.equal(value, before[name])}
    assert "adapter.weight" in changed and "model.0.weight" not in changed


class HalfLoss(TinyTask):
    def forward(self, images, target, index):
        return {"total": super().forward(images, target, index)["total"].bfloat16()}


class RowLoss(TinyTask):
    def forward(self, images, target, index):
        return {"total": super().forward(images, target, index)["total"].expand(4)}


@pytest.mark.parametrize("task", [HalfLoss(), RowLoss()], ids=lambda task: type(task).__name__)
def test_a_total_that_is_no_float32_number_is_refused(tmp_path, task: nn.Module):
    with pytest.raises(TypeError, match="total must be a 0-dim float32 tensor"):
        run_fit(tmp_path, task=task)


class Asked(TinyTask):
    """A task that returns ``answer`` when an epoch begins."""

    def __init__(self, answer: object) -> None:
        super().__init__()
        self.answer = answer
        self.epochs: list[int] = []

    def begin_epoch(self, epoch: int) -> object:
        self.epochs.append(epoch)
        return self.answer


@pytest.mark.parametrize("answer", [True, False])
def test_a_task_is_told_of_each_epoch(tmp_path, answer):
    task = Asked(answer)
    run_fit(tmp_path, task=task, epochs=3)
    assert task.epochs == [0, 1, 2]


@pytest.mark.parametrize("answer", [None, 1, "no"])
def test_begin_epoch_returns_a_bool_and_nothing_else(tmp_path, answer):
    with pytest.raises(TypeError, match=rf"Asked\.begin_epoch must return a bool, got {answer!r}"):
        run_fit(tmp_path, task=Asked(answer))


def test_a_task_that_is_no_module_is_refused(tmp_path):
    with pytest.raises(TypeError, match=r"task must be an nn\.Module, got SimpleNamespace"):
        run_fit(tmp_path, task=SimpleNamespace(model=None))


def test_fewer_images_than_a_batch_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"optim\.batch_size is 8, more than the 5 training images"):
        run_fit(tmp_path, data=Data(train_size=5))


@pytest.mark.parametrize(
    ("available", "name", "expected"),
    [(0, "auto", "cpu"), (0, "cpu", "cpu"), (2, "auto", "cuda:0"), (2, "cuda", "cuda:0"), (2, "cuda:1", "cuda:1"),
     (2, "cpu", "cpu")],
)  # fmt: skip
def test_devices(monkeypatch, available, name, expected):
    fake = SimpleNamespace(is_available=lambda: available > 0, device_count=lambda: available, current_device=lambda: 0)
    monkeypatch.setattr(device_module.torch, "cuda", fake)
    assert resolve_device(name) == torch.device(expected)


@pytest.mark.parametrize(
    ("available", "name", "message"),
    [(0, "cuda", "no CUDA device is usable"), (0, "cuda:1", "no CUDA device is usable"), (2, "cuda:2", "end at 1")],
)
def test_devices_that_are_not_there(monkeypatch, available, name, message):
    fake = SimpleNamespace(is_available=lambda: available > 0, device_count=lambda: available)
    monkeypatch.setattr(device_module.torch, "cuda", fake)
    with pytest.raises(ConfigError, match=message):
        resolve_device(name)


def test_without_tensorboard_training_goes_on(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    run_fit(tmp_path, epochs=1, engine={"tensorboard": True})
    assert "pip install 'sftn_fast[tensorboard]'" in caplog.text
    assert (tmp_path / "summary.csv").exists()


def test_tensorboard(tmp_path):
    pytest.importorskip("tensorboard")
    run_fit(tmp_path, epochs=1, engine={"tensorboard": True})
    (events,) = (tmp_path / "tensorboard").iterdir()
    content = events.read_bytes()
    assert b"train/total" in content and b"epoch/test_top1" in content
