"""The number of threads that a job measures to be the fastest."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import torch

from sftn_fast.config import ConfigError, EngineConfig
from sftn_fast.engine import Interrupted, read_checkpoint, threads

from .stubs import Data, StoppingLoader, make_task, run_fit, without_timing


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    """Let torch report the number it is given but compute with one thread, because tests share their processors."""
    told = [1]
    monkeypatch.setattr(torch, "set_num_threads", told.append)
    monkeypatch.setattr(torch, "get_num_threads", lambda: told[-1])


@pytest.fixture
def clock(monkeypatch):
    """Set the measured seconds a step by number of threads. The steps still run."""
    seconds: dict[int, float] = {}
    take = threads._seconds_a_step

    def taken(train_step, batch, number):
        take(train_step, batch, number)
        return seconds[number]

    monkeypatch.setattr(threads, "_seconds_a_step", taken)
    monkeypatch.setattr(threads, "AVAILABLE", 3)
    return seconds


@pytest.mark.parametrize(
    ("seconds", "chosen"),
    [({1: 1.0, 2: 0.6, 3: 0.5}, 3), ({1: 1.0, 2: 0.6, 3: 0.59}, 2), ({1: 1.0, 2: 0.99, 3: 1.5}, 1),
     ({1: 2.0, 2: 1.0, 3: 1.1}, 2)],
)  # fmt: skip
def test_the_fewest_that_are_as_good_as_the_best(seconds, chosen, tmp_path: Path, clock, capsys):
    clock |= seconds
    tried = run_fit(tmp_path / "tried", engine={"threads": "auto"})
    assert f"engine.threads: {chosen} (images a second with 1: {8 / seconds[1]:.0f}, 2: " in capsys.readouterr().out
    assert torch.get_num_threads() == chosen
    # Measuring changes nothing: the run equals one that was given the number.
    given = run_fit(tmp_path / "given", engine={"threads": chosen})
    assert [without_timing(row) for row in tried.history] == [without_timing(row) for row in given.history]


def test_a_resumed_run_keeps_the_number_it_began_with(tmp_path: Path, clock, capsys):
    clock |= {1: 1.0, 2: 0.5, 3: 0.7}
    data = Data()
    data.train = StoppingLoader(data.train, 13, signal.SIGTERM)
    with pytest.raises(Interrupted):
        run_fit(tmp_path, data=data, engine={"threads": "auto"})
    capsys.readouterr()
    torch.set_num_threads(1)
    clock |= {1: 0.1}
    run_fit(tmp_path, task=make_task(seed=9), engine={"threads": "auto"})
    assert torch.get_num_threads() == 2
    assert "engine.threads" not in capsys.readouterr().out
    assert read_checkpoint(tmp_path / "checkpoints" / "step_000000020")["threads"] == 2


@pytest.mark.parametrize("wrong", [0, -1])
def test_no_threads_are_refused(wrong):
    with pytest.raises(ConfigError, match=r"engine\.threads must be from 1 to 1024, auto or null"):
        EngineConfig(threads=wrong)
