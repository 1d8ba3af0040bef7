"""Two processes over gloo; one process without a group."""

from __future__ import annotations

from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from sftn_fast.engine import Layout, distributed, evaluate

from .faults import processes
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
    assert distributed.any_rank(True, CPU) and not distributed.any_rank(False, CPU)


def exchange(rank: int, store: Path, report: Connection) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    images, target = split(TEST, 3)
    share = EvalLoader(images[rank::2], target[rank::2])  # 12 and 11 images
    report.send(
        {
            "who": (distributed.rank(), distributed.world_size(), distributed.is_main()),
            "sum": distributed.all_sum(torch.tensor([rank + 1.0])).item(),
            "any": [distributed.any_rank(flag, CPU) for flag in (rank == 1, False, True)],
            "gathered": distributed.gather({"rank": rank}),
            "evaluated": evaluate(make_task().model, share, Layout(CPU)),
        }
    )
    dist.destroy_process_group()


def test_two_processes_agree(tmp_path):
    pipes = [processes.Pipe(duplex=False) for _ in range(2)]
    children = [
        processes.Process(target=exchange, args=(rank, tmp_path / "store", there))
        for rank, (_, there) in enumerate(pipes)
    ]
    for child in children:
        child.start()
    reports = [here.recv() for here, _ in pipes]
    for child in children:
        child.join()
        assert child.exitcode == 0
    assert [report["who"] for report in reports] == [(0, 2, True), (1, 2, False)]
    whole = evaluate(make_task().model, EvalLoader(*split(TEST, 3)), Layout(CPU))
    for report in reports:
        assert report["sum"] == 3
        assert report["any"] == [True, False, True]
        assert report["gathered"] == [{"rank": 0}, {"rank": 1}]
        assert report["evaluated"] == pytest.approx(whole, rel=1e-6)
