"""Stages side by side, a process a device.

Seeds are independent of each other; within one, a stage waits for those that it reads from. Every stage computes what
it would in one process alone, since it seeds itself and what it reads is finished.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import Pipe
from multiprocessing.connection import wait
from pathlib import Path

import torch

from sftn_fast.config import Config, ConfigError
from sftn_fast.engine import Interrupted
from sftn_fast.engine.signals import StopSignals
from sftn_fast.experiment.plan import Job, needs
from sftn_fast.experiment.worker import DONE, FAILED, REFUSED, STOPPED

POLL = 0.2  # seconds until a signal to this process is seen


class JobError(Exception):
    """A stage went wrong in its process; the message says which, and why."""


def run(
    config: Config,
    stages: Sequence[Job],
    root: Path,
    devices: Sequence[torch.device],
    *,
    lock: int,
    announce: Callable[[Job, str], None],
) -> None:
    """Run ``stages`` on ``devices``. After a stage that fails none is begun; those under way finish first.

    Args:
        config: Of the experiment; unless ``engine.threads`` is a number, each process has its share of torch's.
        stages: In the order in which they are begun, where they don't wait for each other.
        root: The run's folder.
        devices: One for each process; the same one may be named more than once.
        lock: File descriptor that holds the folder; inherited, so that it is free only when every process has ended.
        announce: Called with each stage that begins, and the name of its device.

    Raises:
        ConfigError: A stage refused the configuration.
        JobError: A stage went wrong.
        Interrupted: After SIGTERM or SIGINT, when all processes have written their checkpoints and ended.
    """
    waiting, done = list(stages), set[tuple[int, str]]()
    problems: list[Exception] = []
    with StopSignals() as stop, _started(config, root, devices, lock) as workers:
        while True:
            if stop.signum is not None:
                for worker in workers:
                    worker.stop()
            elif not problems:
                for worker in workers:
                    _begin_next(worker, config, stages, waiting, done, announce)
            busy = {worker.connection: worker for worker in workers if worker.stage}
            if not busy:
                break
            for connection in wait(list(busy), timeout=POLL):
                worker = busy[connection]  # type: ignore[index]
                stage, outcome, text = worker.answer()
                if outcome == DONE:
                    done.add((stage.seed, stage.name))
                elif stop.signum is None:
                    problems.append(_problem(stage, outcome, text))
                    print(f"{problems[-1]}: no further stage begins", file=sys.stderr, flush=True)
    if stop.signum is not None:
        raise Interrupted(stop.signum)
    if problems:
        raise problems[0]
    if waiting:
        raise JobError("all processes ended before the last stage began")


def _problem(stage: Job, outcome: str, text: str) -> Exception:
    if outcome == STOPPED:
        return Interrupted(signal.SIGTERM)
    error = ConfigError if outcome == REFUSED else JobError
    return error(f"seed {stage.seed} {stage.name}: {text}")


def _begin_next(
    worker: _Worker,
    config: Config,
    stages: Sequence[Job],
    waiting: list[Job],
    done: set[tuple[int, str]],
    announce: Callable[[Job, str], None],
) -> None:
    """Give an idle worker the first stage that can begin, of the seed whose images it holds if there is one."""
    if worker.stage or worker.ended:
        return
    known = {(stage.seed, stage.name) for stage in stages}
    open_ = known - done
    ready = [s for s in waiting if not any((s.seed, name) in open_ for name in needs(config, s))]
    if ready:
        stage = min(ready, key=lambda s: s.seed != worker.seed)
        waiting.remove(stage)
        announce(stage, worker.device)
        worker.begin(stage)


class _Worker:
    """The parent's side of a process that runs stages on one device."""

    def __init__(self, config: Config, root: Path, lock: int) -> None:
        self.device = config.engine.device
        self.stage: Job | None = None
        self.seed: int | None = None
        self._signalled = False
        self.connection, theirs = Pipe()
        # Its own session: Ctrl-C is for this process, which passes it on once.
        self.process = subprocess.Popen(
            [sys.executable, "-m", "sftn_fast.experiment.worker", str(theirs.fileno())],
            pass_fds=(theirs.fileno(), lock),
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            start_new_session=True,
        )
        theirs.close()
        self.connection.send((config, root))

    @property
    def ended(self) -> bool:
        return self.process.poll() is not None

    def begin(self, stage: Job) -> None:
        self.stage, self.seed = stage, stage.seed
        with suppress(OSError):  # a process that has just ended is noticed where its answer is read
            self.connection.send(stage)

    def answer(self) -> tuple[Job, str, str]:
        """The stage that ended, how, and what there is to say to that."""
        stage, self.stage = self.stage, None
        assert stage is not None
        try:
            return (stage, *self.connection.recv())
        except (EOFError, OSError):
            return stage, FAILED, f"its process ended with exit code {self.process.wait()}"

    def stop(self) -> None:
        """Have it write its checkpoint and end; asked once, since a second signal ends a process at once."""
        if not self._signalled:
            self._signalled = True
            self.process.send_signal(signal.SIGTERM)

    def close(self) -> None:
        """Wait for the process's end, which comes after the stage under way has stopped."""
        with suppress(OSError):  # it may have ended already
            if self.stage is None:
                self.connection.send(None)
        self.connection.close()
        self.process.wait()


@contextmanager
def _started(config: Config, root: Path, devices: Sequence[torch.device], lock: int) -> Iterator[list[_Worker]]:
    given = config.engine.threads
    threads = given if isinstance(given, int) else max(1, torch.get_num_threads() // len(devices))
    workers: list[_Worker] = []
    try:
        for device in devices:
            engine = dataclasses.replace(config.engine, device=str(device), threads=threads)
            workers.append(_Worker(dataclasses.replace(config, devices=1, engine=engine), root, lock))
        yield workers
    finally:
        for worker in workers:
            worker.close()
