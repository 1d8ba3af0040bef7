"""Two processes over gloo; one process without a group."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from sftn_fast.engine import Layout, PeerError, distributed, evaluate

from .ranks import on_ranks
from .stubs import TEST, EvalLoader, make_task, split

CPU = torch.device("cpu")


@pytest.mark.parametrize(("environment", "expected"), [({}, (0, 1)), ({"RANK": "2", "WORLD_SIZE": "4"}, (2, 4))])
def test_the_launcher_tells_rank_and_world_size(monkeypatch, environment, expected):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert (distributed.rank(), distributed.world_size()) == expected
    assert distributed.is_main() == (expected[0] == 0)


def test_alone_nothing_is_exchanged():
    value = torch.tensor([1.0, 2.0])
    assert distributed.all_sum(value) is value
    assert distributed.gather("mine") == ["mine"]
    assert distributed.largest(3) == 3
    assert distributed.on_every_rank(lambda: 5) == distributed.on_main(lambda: 5) == 5


def exchange() -> dict[str, Any]:
    rank = distributed.rank()
    images, target = split(TEST, 3)
    share = EvalLoader(images[rank::2], target[rank::2])  # 12 and 11 images
    task = make_task()
    task.model[1].running_mean += rank  # type: ignore[operator]
    return {
        "who": (distributed.rank(), distributed.world_size(), distributed.is_main()),
        "sum": distributed.all_sum(torch.tensor([rank + 1.0])).item(),
        "max": distributed.all_max(torch.tensor([rank + 1.0])).item(),
        "largest": distributed.largest(10 * rank),
        "gathered": distributed.gather({"rank": rank}),
        "main": distributed.on_main(lambda: f"from {distributed.rank()}"),
        "every": distributed.on_every_rank(lambda: f"from {distributed.rank()}"),
        "evaluated": evaluate(task.model, share, Layout(CPU)),
    }


def test_two_processes_agree():
    reports = on_ranks(2, exchange)
    assert [report["who"] for report in reports] == [(0, 2, True), (1, 2, False)]
    assert [report["every"] for report in reports] == ["from 0", "from 1"]
    whole = evaluate(make_task().model, EvalLoader(*split(TEST, 3)), Layout(CPU))
    for report in reports:
        assert (report["sum"], report["max"], report["largest"]) == (3, 2, 10)
        assert report["gathered"] == [{"rank": 0}, {"rank": 1}]
        assert report["main"] == "from 0"
        assert report["evaluated"] == pytest.approx(whole, rel=1e-6)


def failing(*ranks: int) -> list[str]:
    def call() -> None:
        if distributed.rank() in ranks:
            raise ValueError(f"on {distributed.rank()}")

    said = []
    for agree in (distributed.on_every_rank, distributed.on_main):
        try:
            agree(call)
            said.append("fine")
        except (ValueError, PeerError) as error:
            said.append(str(error))
    return said


@pytest.mark.parametrize(
    ("ranks", "expected"),
    [
        ((1,), [["rank 1 failed", "fine"], ["on 1", "fine"]]),
        ((0, 1), [["on 0", "on 0"], ["rank 0 failed", "rank 0 failed"]]),
        ((), [["fine", "fine"], ["fine", "fine"]]),
    ],
)
def test_a_failure_is_everyones_and_said_once(ranks, expected):
    assert on_ranks(2, failing, *ranks) == expected


def buffers() -> list[list[float]]:
    module = nn.ModuleDict({"norm": nn.BatchNorm1d(3), "other": nn.BatchNorm1d(2, track_running_stats=False)})
    norm = module["norm"]
    norm.running_mean += distributed.rank() + 1  # type: ignore[operator]
    norm.num_batches_tracked += 5 * distributed.rank()  # type: ignore[operator]
    distributed.share_buffers(module)
    return [buffer.tolist() for buffer in module.buffers()]


def test_the_main_ranks_buffers_count():
    assert on_ranks(3, buffers) == [[[1.0, 1.0, 1.0], [1.0, 1.0, 1.0], 0]] * 3
