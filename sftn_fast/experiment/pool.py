"""Jobs side by side, one process a device.

Seeds are independent of each other. Within one, a job waits for those that it reads from. Every job computes what it
would in a single process: it seeds itself, and what it reads is finished.
"""

from __future__ import annotations

import dataclasses
import signal
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
from sftn_fast.experiment.fork_server import ForkServer, interpreter
from sftn_fast.experiment.plan import Job
from sftn_fast.experiment.worker import DONE, FAILED, REFUSED, STOPPED
from sftn_fast.utils.text import LONGEST_MESSAGE, printable

POLL = 0.2  # seconds until a signal to this process is seen


class JobError(Exception):
    """A job failed in its process. The message names the job and the reason."""


def run(
    config: Config,
    jobs: Sequence[Job],
    root: Path,
    devices: Sequence[torch.device],
    *,
    lock: int,
    announce: Callable[[Job, str], None],
    server: ForkServer | None = None,
) -> None:
    """Run ``jobs`` on ``devices``. If one fails, those under way finish and no other begins.

    Args:
        config: Of the experiment. Unless ``engine.threads`` is a number, each process gets its share of the threads.
        jobs: In the order in which they begin, unless they wait for each other.
        root: The run's folder.
        devices: One for each process; may name a device more than once.
        lock: File descriptor that locks the folder. Processes inherit it, so the lock ends with the last of them.
        announce: Called with each job that begins, and the name of its device.
        server: Forks the processes that run on the CPU. Others, and all without it, are fresh interpreters.

    Raises:
        ConfigError: A job refused the configuration.
        JobError: A job failed.
        Interrupted: After SIGTERM or SIGINT, once all processes have saved a checkpoint and ended.
    """
    waiting, done = list(jobs), set[tuple[int, str]]()
    problems: list[Exception] = []
    with StopSignals() as stop, _started(config, root, devices, lock, server) as workers:
        while True:
            if stop.signum is not None:
                for worker in workers:
                    worker.stop()
            elif not problems:
                for worker in workers:
                    _begin_next(worker, config, jobs, waiting, done, announce)
            busy = {worker.connection: worker for worker in workers if worker.job}
            if not busy:
                break
            for connection in wait(list(busy), timeout=POLL):
                worker = busy[connection]  # type: ignore[index]
                job, outcome, text = worker.answer()
                if outcome == DONE:
                    done.add((job.seed, job.name))
                elif stop.signum is None:
                    problems.append(_problem(job, outcome, text))
                    said = printable(problems[-1], LONGEST_MESSAGE)
                    print(f"{said}: no further job begins", file=sys.stderr, flush=True)
    if stop.signum is not None:
        raise Interrupted(stop.signum)
    if problems:
        raise problems[0]
    if waiting:
        raise JobError("all processes ended before the last job began")


def _problem(job: Job, outcome: str, text: str) -> Exception:
    if outcome == STOPPED:
        return Interrupted(signal.SIGTERM)
    error = ConfigError if outcome == REFUSED else JobError
    return error(f"seed {job.seed} {job.name}: {text}")


def _begin_next(
    worker: _Worker,
    config: Config,
    jobs: Sequence[Job],
    waiting: list[Job],
    done: set[tuple[int, str]],
    announce: Callable[[Job, str], None],
) -> None:
    """Give an idle worker the first job that is ready, preferring the seed whose images it holds."""
    if worker.job or worker.ended:
        return
    known = {(job.seed, job.name) for job in jobs}
    unfinished = known - done
    ready = [s for s in waiting if not any((s.seed, name) in unfinished for name in s.behaviour.needs(config, s))]
    if ready:
        job = min(ready, key=lambda s: s.seed != worker.seed)
        waiting.remove(job)
        announce(job, worker.device)
        worker.begin(job)


class _Worker:
    """A process that runs jobs on one device, as its parent sees it."""

    def __init__(self, config: Config, root: Path, lock: int, server: ForkServer | None) -> None:
        self.device = config.engine.device
        self.job: Job | None = None
        self.seed: int | None = None
        self._signalled = False
        self.connection, theirs = Pipe()
        forked = server.fork(theirs.fileno(), lock) if server and self.device == "cpu" else None
        self.process = forked or interpreter("sftn_fast.experiment.worker", theirs.fileno(), lock)
        theirs.close()
        self.connection.send((config, root))

    @property
    def ended(self) -> bool:
        return self.process.poll() is not None

    def begin(self, job: Job) -> None:
        self.job, self.seed = job, job.seed
        with suppress(OSError):  # reading its answer notices a process that has just ended
            self.connection.send(job)

    def answer(self) -> tuple[Job, str, str]:
        """Return the job that ended, how it ended, and the reason."""
        job, self.job = self.job, None
        assert job is not None
        try:
            return (job, *self.connection.recv())
        except (EOFError, OSError):
            return job, FAILED, f"its process ended with exit code {self.process.wait()}"

    def stop(self) -> None:
        """Ask it to save a checkpoint and end. Asks once: a second signal ends a process at once."""
        if not self._signalled:
            self._signalled = True
            self.process.send_signal(signal.SIGTERM)

    def close(self) -> None:
        """Wait for the process to end, after the job under way has stopped."""
        with suppress(OSError):  # it may have ended already
            if self.job is None:
                self.connection.send(None)
        self.connection.close()
        self.process.wait()


@contextmanager
def _started(
    config: Config, root: Path, devices: Sequence[torch.device], lock: int, server: ForkServer | None
) -> Iterator[list[_Worker]]:
    given = config.engine.threads
    threads = given if isinstance(given, int) else max(1, torch.get_num_threads() // len(devices))
    workers: list[_Worker] = []
    try:
        for device in devices:
            engine = dataclasses.replace(config.engine, device=str(device), threads=threads)
            workers.append(_Worker(dataclasses.replace(config, devices=1, engine=engine), root, lock, server))
        yield workers
    finally:
        for worker in workers:
            worker.close()
