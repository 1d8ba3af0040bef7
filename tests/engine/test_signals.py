"""Signals, sent to real processes that run a real fit."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from sftn_fast.engine import Interrupted
from sftn_fast.engine.signals import StopSignals
from sftn_fast.utils.progress import CLEAR

from .stubs import run_fit

TESTS = Path(__file__).parents[1]
CHILD = """
import sys
from pathlib import Path
from engine.stubs import Data, run_fit
from sftn_fast.engine import Interrupted

data, stuck = Data(), "stuck" in sys.argv
if stuck:
    epoch = data.train.epoch
    def stuck_epoch(*args):
        yield from list(epoch(*args))[:3]
        print("stuck", flush=True)
        sys.stdin.read()
    data.train.epoch = stuck_epoch
try:
    run_fit(Path(sys.argv[1]), data=data, epochs=10**6, engine={"log_every": 1, "checkpoint_every": 10**6,
            "eval_every": 10**6})
except Interrupted as stop:
    sys.exit(128 + stop.signum)
"""


def start(folder: Path, *mode: str) -> subprocess.Popen:
    """A child that trains for ever, or gets stuck fetching its fourth batch."""
    path = os.pathsep.join([str(TESTS), str(TESTS.parent)])
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, str(folder), *mode], env={**os.environ, "PYTHONPATH": path},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def wait_for(stream, text: str) -> str:
    for line in stream:
        if text in line:
            return line
    raise AssertionError(f"the child ended before it said {text!r}")


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_the_first_signal_ends_the_step_and_writes_a_checkpoint(tmp_path, signum):
    with start(tmp_path) as child:
        wait_for(child.stdout, "step 13 ")
        child.send_signal(signum)
        _, errors = child.communicate(timeout=60)
    assert child.returncode == 128 + signum, errors
    assert f"{signum.name}: stopping after this step" in errors
    (checkpoint,) = (tmp_path / "checkpoints").iterdir()
    last = (tmp_path / "metrics.jsonl").read_text().splitlines()[-1]
    assert f'"step": {int(checkpoint.name.removeprefix("step_"))},' in last
    assert int(checkpoint.name.removeprefix("step_")) >= 13


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_the_second_signal_exits_at_once(tmp_path, second):
    with start(tmp_path, "stuck") as child:
        wait_for(child.stdout, "stuck")
        child.send_signal(signal.SIGTERM)
        wait_for(child.stderr, "SIGTERM: stopping")
        child.send_signal(second)
        assert child.wait(timeout=60) == 128 + second
        assert "exiting now" in child.stderr.read()
        child.stdin.close()
    assert not list((tmp_path / "checkpoints").iterdir())


def test_handlers_come_back(tmp_path):
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with pytest.raises(ZeroDivisionError), StopSignals():
        assert signal.getsignal(signal.SIGTERM) != before[0]
        _ = 1 / 0
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def test_outside_the_main_thread_training_works_without_handlers(tmp_path):
    results = []
    thread = threading.Thread(target=lambda: results.append(run_fit(tmp_path, epochs=1)))
    thread.start()
    thread.join()
    assert results[0].last["epoch"] == 1


def test_interrupted_says_which_signal():
    assert Interrupted(15).signum == 15 and "SIGTERM" in str(Interrupted(15))


def test_sigusr1_may_come_twice():
    with StopSignals() as stop:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGUSR1)
        assert stop.signum == signal.SIGUSR1


def test_a_system_without_sigusr1(monkeypatch):
    """As Windows is; what there is stops a run as ever."""
    monkeypatch.delattr(signal, "SIGUSR1")
    spec = importlib.util.find_spec("sftn_fast.engine.signals")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.SIGNALS == (signal.SIGTERM, signal.SIGINT)
    with module.StopSignals() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.signum == signal.SIGTERM


@pytest.mark.parametrize("terminal", [True, False])
def test_the_notice_stands_on_a_line_of_its_own(terminal, monkeypatch):
    """Not behind the bar and the ^C that the terminal shows; and where nobody reads it, nothing happens."""
    written = []
    monkeypatch.setattr(os, "isatty", lambda descriptor: terminal)
    monkeypatch.setattr(os, "write", lambda descriptor, text: written.append(text.decode()))
    with StopSignals() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.signum == signal.SIGINT
    assert written == [f"{CLEAR if terminal else ''}SIGINT: stopping after this step; send it again to exit now\n"]


def test_a_closed_standard_error_ends_no_step(monkeypatch):
    def broken(descriptor, text):
        raise BrokenPipeError

    monkeypatch.setattr(os, "write", broken)
    with StopSignals() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.signum == signal.SIGINT
