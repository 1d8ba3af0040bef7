"""Jobs one after the other on one device, in this process or in one that :mod:`sftn_fast.experiment.pool` started.

As a process it is ``python -m sftn_fast.experiment.worker FD``, or a fork of :mod:`sftn_fast.experiment.fork_server`,
where FD is its end of a pipe. It receives the configuration and the folder, then jobs, and answers each job with how
it ended. When the other end of the pipe closes, the parent is gone: the worker saves a checkpoint and stops, as on
SIGTERM.
"""

from __future__ import annotations

import io
import os
import signal
import sys
import threading
import traceback
from functools import lru_cache, partial
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TextIO

import torch

from sftn_fast import data, engine
from sftn_fast.config import Config, ConfigError
from sftn_fast.data import ImageData
from sftn_fast.engine import distributed
from sftn_fast.engine.device import is_channels_last
from sftn_fast.experiment import service_runs
from sftn_fast.experiment.job import JobRunner
from sftn_fast.experiment.plan import Job
from sftn_fast.loggers import Services
from sftn_fast.utils import allocator, plugins, streams
from sftn_fast.utils.atomic import describe
from sftn_fast.utils.checksummed import DamagedError

DONE, STOPPED, REFUSED, FAILED = "done", "stopped", "refused", "failed"
"""How a job ended, as a worker answers. A reason goes with all but the first."""


class Worker:
    """Runs jobs of one experiment on the device of its configuration."""

    def __init__(self, config: Config, root: Path) -> None:
        self.config, self.root = config, root
        self.device = engine.resolve_device(config.engine.device)
        if isinstance(config.engine.threads, int):
            torch.set_num_threads(config.engine.threads)
        self.services = Services(service_runs.names(config) if distributed.is_main() else ())
        # One seed's images at a time: jobs come seed by seed, and those of a seed share them.
        self.images_of = lru_cache(maxsize=1)(self._build_images)

    def _build_images(self, seed: int) -> ImageData:
        build = partial(data.build, seed=seed, batch_size=self.config.optim.batch_size, device=self.device)
        share = {"rank": distributed.rank(), "world_size": distributed.world_size()}
        # A job whose network is faster with another layout converts them.
        layout = {"channels_last": is_channels_last(self.config.engine, None, self.device)}
        return distributed.on_every_rank(partial(build, self.config.data, **share, **layout))

    def run(self, job: Job) -> None:
        """Train the job's network, unless it is finished already."""
        images = self.images_of(job.seed)
        JobRunner(self.config, job, self.root, self.device, images, self.services).finish()


class PrefixedLines(io.TextIOBase):
    """A text stream that writes whole lines to ``stream``, each after :attr:`prefix`, in one piece."""

    def __init__(self, stream: TextIO) -> None:
        self.stream, self.prefix, self._line = stream, "", ""

    def write(self, text: str) -> int:
        """Write the complete lines in ``text`` and keep the rest."""
        *lines, self._line = (self._line + text).split("\n")
        if lines:
            self.stream.write("".join(f"{self.prefix}{line}\n" for line in lines))
            self.stream.flush()
        return len(text)


def run(descriptor: int) -> None:
    """Serve the parent at the other end of a pipe, as the only work of this process."""
    with streams.lasting():  # the parent reports a reader that left
        _serve(Connection(descriptor))


def _serve(connection: Connection[Any, Any]) -> None:
    orders: SimpleQueue[Any] = SimpleQueue()
    threading.Thread(target=_listen, args=(connection, orders), daemon=True).start()
    out, errors = PrefixedLines(sys.stdout), PrefixedLines(sys.stderr)
    sys.stdout, sys.stderr = out, errors  # type: ignore[assignment]
    worker = _prepare(*orders.get())
    while (job := orders.get()) is not None:
        out.prefix = errors.prefix = f"seed {job.seed} {job.name} | "
        outcome = _outcome(worker, job)
        try:
            connection.send(outcome)
        except OSError:  # the parent is gone: nobody asks how the job ended
            return


def _prepare(config: Config, root: Path) -> Worker | ConfigError:
    """Return a worker, or the error that the first job is answered with."""
    try:
        plugins.load(config.plugins)  # this process has not imported them yet
    except ConfigError as error:
        return error
    data.mute_notices()  # the parent has printed them
    worker = Worker(config, root)
    if worker.device.type == "cpu":
        allocator.keep_freed_memory()
    return worker


def _listen(connection: Connection[Any, Any], orders: SimpleQueue[Any]) -> None:
    """Pass on what the parent sends, up to None. Reads all the time, to notice when the parent is gone."""
    try:
        while (order := connection.recv()) is not None:
            orders.put(order)
        orders.put(None)
    except (EOFError, OSError):
        os.kill(os.getpid(), signal.SIGTERM)


def _outcome(worker: Worker | ConfigError, job: Job) -> tuple[str, str]:
    if isinstance(worker, ConfigError):
        return REFUSED, str(worker)
    try:
        worker.run(job)
    except engine.Interrupted as interrupted:
        return STOPPED, str(interrupted)
    except ConfigError as error:
        return REFUSED, str(error)
    except (engine.NonFiniteError, engine.CheckpointError, DamagedError) as error:
        return FAILED, str(error)
    except OSError as error:
        return FAILED, describe(error)
    except Exception as error:
        traceback.print_exc()
        return FAILED, f"{type(error).__name__}: {error}"
    return DONE, ""


if __name__ == "__main__":
    run(int(sys.argv[1]))
