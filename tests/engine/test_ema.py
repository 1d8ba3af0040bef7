"""The average of the weights: as timm's, evaluated beside them, in checkpoints and replays, skipped with its step."""

from __future__ import annotations

import copy
import signal
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from sftn_fast.config import EmaConfig, OptimConfig
from sftn_fast.engine import Interrupted, Layout, evaluate
from sftn_fast.engine.checkpoint_content import check_content
from sftn_fast.engine.ema import EMA
from sftn_fast.engine.optim import build_sgd

from . import fake_cuda_graph
from .stubs import Data, StoppingLoader, make_task, run_fit, without_timing

GO, SKIP = torch.zeros(()), torch.ones(())


def average_of(model: nn.Module, config: EmaConfig) -> EMA:
    return EMA(model, config, torch.device("cpu"))


@pytest.mark.parametrize(
    ("config", "decays"),
    [
        # timm 1.0's ModelEmaV3(decay=0.9998, use_warmup=True).get_decay(n) for n = 1, 2, 3, 1000, 10**7.
        (EmaConfig(0.9998), [0.0, 0.3700394750525634, 0.5192501432308638, 0.99, 0.9998]),
        (EmaConfig(0.9998, warmup=False), [0.0, 0.9998, 0.9998, 0.9998, 0.9998]),
        (EmaConfig(0.5), [0.0, 0.3700394750525634, 0.5, 0.5, 0.5]),
    ],
)
def test_the_decay_is_timms(config: EmaConfig, decays: list[float]) -> None:
    ema = average_of(nn.Linear(1, 1), config)
    assert [1 - ema.share(n - 1) for n in (1, 2, 3, 1000, 10**7)] == pytest.approx(decays, abs=1e-12)


def test_weights_and_statistics_are_averaged_and_counts_copied() -> None:
    norm = nn.BatchNorm1d(2)
    ema = average_of(norm, EmaConfig(0.5, warmup=False))
    for number, value in enumerate((1.0, 3.0, 7.0)):
        norm.weight.data.fill_(value)
        norm.running_mean.fill_(10 * value)
        norm.num_batches_tracked.fill_(number)
        ema.begin_step(number)
        ema.update(GO)
    expected = {"weight": 4.5, "bias": 0.0, "running_mean": 45.0, "running_var": 1.0, "num_batches_tracked": 2}
    assert {name: value.flatten()[0].item() for name, value in ema.weights().items()} == expected
    assert norm.weight[0].item() == 7 and norm.running_mean[0].item() == 70  # as they were


def test_a_skipped_step_is_not_averaged() -> None:
    layer = nn.Linear(2, 2)
    ema = average_of(layer, EmaConfig(0.5))
    before = ema.weights()
    layer.weight.data.add_(1)
    ema.begin_step(7)
    ema.update(SKIP)
    assert all(torch.equal(value, before[name]) for name, value in ema.weights().items())


def test_the_network_gets_its_own_weights_back_after_an_error() -> None:
    layer = nn.Linear(2, 2)
    ema = average_of(layer, EmaConfig(0.5))
    layer.weight.data.add_(1)
    own = layer.weight.detach().clone()
    with pytest.raises(KeyError), ema.applied():
        assert not torch.equal(layer.weight, own)
        raise KeyError
    assert torch.equal(layer.weight, own)


CONFIG = EmaConfig(0.9)


def test_both_are_evaluated_and_training_is_the_same(tmp_path: Path) -> None:
    with_average, without = make_task(), make_task()
    seen: list[Tensor] = []
    remember = lambda epoch: seen.append(with_average.model[0].weight.detach().clone())  # noqa: E731
    data = Data(with_val=True)
    result = run_fit(tmp_path / "ema", task=with_average, data=data, ema=CONFIG, on_epoch=remember)
    plain = run_fit(tmp_path / "plain", task=without, data=Data(with_val=True))
    assert plain.ema_weights is None and result.ema_weights is not None
    assert all(
        torch.equal(a, b)
        for a, b in zip(with_average.state_dict().values(), without.state_dict().values(), strict=True)
    )
    for row, before in zip(result.history, plain.history, strict=True):
        more = {f"{split}_ema_{name}" for split in ("val", "test") for name in ("top1", "top5", "ce")}
        assert row.keys() - before.keys() == more
        assert without_timing({key: row[key] for key in before}) == without_timing(before)
    with_average.model.load_state_dict(result.ema_weights)
    scores = evaluate(with_average.model, data.test, Layout(torch.device("cpu")))
    assert {f"test_ema_{name}": value for name, value in scores.items()}.items() <= result.last.items()
    assert result.last["test_ema_ce"] != result.last["test_ce"]
    assert torch.equal(seen[-1], result.ema_weights["0.weight"])  # a callback sees the average


@pytest.mark.parametrize("amp", ["fp32", "fp16"])
@pytest.mark.parametrize("graphed", [False, True])
def test_stopped_in_mid_epoch_and_replayed_it_ends_with_the_same_bits(
    tmp_path: Path, monkeypatch, amp, graphed
) -> None:
    options = {"ema": CONFIG, "engine": {"amp": amp}}
    expected = run_fit(tmp_path / "unbroken", **options)
    record = fake_cuda_graph.record if graphed else None
    monkeypatch.setattr("sftn_fast.engine.step.recorder", lambda choice, device: record)
    stopped = Data()
    stopped.train = StoppingLoader(stopped.train, 13, signal.SIGTERM)
    with pytest.raises(Interrupted):
        run_fit(tmp_path / "broken", data=stopped, **options)
    result = run_fit(tmp_path / "broken", task=make_task(seed=9), **options)
    assert result.resumed_from == 13
    assert all(torch.equal(value, result.ema_weights[name]) for name, value in expected.ema_weights.items())
    assert [*map(without_timing, result.history)] == [*map(without_timing, expected.history)]


def test_a_checkpoint_without_the_average_is_refused(tmp_path: Path) -> None:
    run_fit(tmp_path, ema=CONFIG, epochs=1)
    (newest,) = (tmp_path / "checkpoints").iterdir()
    state = torch.load(newest / "state.pt", weights_only=True)
    task = make_task()
    ema, sgd = average_of(task.model, CONFIG), build_sgd(task, OptimConfig(), 0.1)
    check_content(state, task, [sgd], ema)
    with pytest.raises(ValueError, match="the average of the network's weights is missing"):
        check_content(state | {"ema": None}, task, [sgd], ema)
    damaged = copy.deepcopy(state)
    damaged["ema"]["0.weight"] = torch.zeros(1)
    with pytest.raises(ValueError, match=r"0\.weight is torch\.float32 \[1\], not"):
        check_content(damaged, task, [sgd], ema)
