"""Estimate of the time that an experiment still takes, from the jobs that are finished."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from statistics import mean

from sftn_fast.config import Config
from sftn_fast.experiment.clock import SECONDS, read_seconds
from sftn_fast.experiment.plan import RESULT, Job
from sftn_fast.utils.checksummed import DamagedError, read_sealed


class TimeEstimate:
    """Estimate from the seconds an epoch of finished jobs: those of the same method, else the same kind, else all.

    Args:
        config: Of the experiment.
        jobs: All jobs of the experiment.
        root: The run's folder, whose ``result.json`` files tell how long a job took.
        processes: Number of jobs that run side by side. They are assumed to be busy to the end.
    """

    def __init__(self, config: Config, jobs: Sequence[Job], root: Path, *, processes: int = 1) -> None:
        self._config, self._jobs, self._root, self._processes = config, jobs, root, processes
        self._begun: dict[Job, float] = {}

    def begin(self, job: Job) -> float | None:
        """Record that ``job`` begins now. Return the seconds until all are done, or None while none is finished."""
        self._begun[job] = time.monotonic()
        rates = self._rates()
        if not rates:
            return None
        unfinished = [job for job in self._jobs if not job.is_finished(self._root)]
        return sum(max(0.0, self._expected(job, rates) - self._spent(job)) for job in unfinished) / self._processes

    def _rates(self) -> list[tuple[Job, float]]:
        """Return the seconds an epoch of each finished job that was trained."""
        rates = []
        for job in self._jobs:
            # A missing result is normal, and a damaged one is named when its job begins.
            with suppress(DamagedError, KeyError, TypeError, ZeroDivisionError):
                result = read_sealed(job.folder(self._root) / RESULT)
                rates.append((job, result["seconds"] / result["epochs"]))
        return [(job, rate) for job, rate in rates if rate > 0]

    def _expected(self, job: Job, rates: Sequence[tuple[Job, float]]) -> float:
        if not job.behaviour.trains(self._config):
            return 0.0
        candidates = [
            [rate for done, rate in rates if (done.kind, done.method) == (job.kind, job.method)],
            [rate for done, rate in rates if done.behaviour is job.behaviour],
            [rate for _, rate in rates],
        ]
        return mean(next(filter(None, candidates))) * self._config.epochs_of(job.kind)

    def _spent(self, job: Job) -> float:
        """Return the seconds that an unfinished job has trained, in this start and earlier ones."""
        now = time.monotonic()
        return now - self._begun.get(job, now) + read_seconds(job.folder(self._root) / SECONDS)
