"""Signals sent to real processes that run a real fit."""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
import threading
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch

from sftn_fast.engine import Interrupted
from sftn_fast.engine.signals import StopSignals
from sftn_fast.utils.progress import CLEAR

from .faults import processes
from .stubs import Data, run_fit


def train_for_ever(folder: Path, streams: tuple[Connection, Connection, Connection], stuck: bool) -> None:
    """Train for ever, or get stuck fetching the fourth batch, with standard streams of one's own."""
    for number, stream in enumerate(streams):
        os.dup2(stream.fileno(), number)
    sys.stdin, sys.stdout, sys.stderr = os.fdopen(0), os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    torch.set_num_threads(1)
    data = Data()
    if stuck:
        epoch = data.train.epoch

        def stuck_epoch(*args):
            yield from list(epoch(*args))[:3]
            print("stuck", flush=True)
            sys.stdin.read()

        data.train.epoch = stuck_epoch
    endless = {"log_every": 1, "checkpoint_every": 10**6, "eval_every": 10**6}
    try:
        run_fit(folder, data=data, epochs=10**6, engine=endless)
    except Interrupted as stop:
        sys.exit(128 + stop.signum)


class Child:
    """A process that runs :func:`train_for_ever`. As a context it is killed at the end."""

    def __init__(self, folder: Path, *, stuck: bool = False):
        (stdin, self._stdin), (out, stdout), (errors, stderr) = (processes.Pipe(duplex=False) for _ in range(3))
        self.process = processes.Process(target=train_for_ever, args=(folder, (stdin, stdout, stderr), stuck))
        self.process.start()
        self.stdout, self.stderr = os.fdopen(os.dup(out.fileno())), os.fdopen(os.dup(errors.fileno()))
        for pipe in (stdin, stdout, stderr, out, errors):
            pipe.close()  # so that the end of the child ends its streams

    def send_signal(self, signum: int) -> None:
        os.kill(self.process.pid, signum)

    def wait(self) -> int | None:
        self.process.join(timeout=60)
        return self.process.exitcode

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        self.process.join()
        for stream in (self.stdout, self.stderr, self._stdin):
            stream.close()


def wait_for(stream, text: str) -> str:
    for line in stream:
        if text in line:
            return line
    raise AssertionError(f"the child ended before it said {text!r}")


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_the_first_signal_ends_the_step_and_writes_a_checkpoint(tmp_path, signum):
    with Child(tmp_path) as child:
        wait_for(child.stdout, "step 13 ")
        child.send_signal(signum)
        child.stdout.read()
        errors = child.stderr.read()
        assert child.wait() == 128 + signum, errors
    assert f"{signum.name}: stopping after this step" in errors
    (checkpoint,) = (tmp_path / "checkpoints").iterdir()
    last = (tmp_path / "metrics.jsonl").read_text().splitlines()[-1]
    assert f'"step": {int(checkpoint.name.removeprefix("step_"))},' in last
    assert int(checkpoint.name.removeprefix("step_")) >= 13


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_the_second_signal_exits_at_once(tmp_path, second):
    with Child(tmp_path, stuck=True) as child:
        wait_for(child.stdout, "stuck")
        child.send_signal(signal.SIGTERM)
        wait_for(child.stderr, "SIGTERM: stopping")
        child.send_signal(second)
        assert child.wait() == 128 + second
        assert "exiting now" in child.stderr.read()
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
    """Import the module as on Windows; the other signals still stop a run."""
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
    """Clear the bar and the ^C that a terminal shows; write no escape codes elsewhere."""
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
