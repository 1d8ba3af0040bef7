"""How long an experiment still takes, judged by the stages that are finished, in this start or an earlier one."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from statistics import mean

from sftn_fast.config import Config
from sftn_fast.experiment.job import SECONDS, read_seconds
from sftn_fast.experiment.plan import RESULT, Job
from sftn_fast.utils.checksummed import DamagedError, read_sealed


class TimeEstimate:
    """Expects a stage to take, for each of its epochs, what finished stages took: the same losses, else the same kind,
    else all.

    Args:
        config: Of the experiment.
        stages: All of them.
        root: The run's folder, whose ``result.json`` files say what a stage took.
        processes: How many stages run side by side; they are taken to be busy to the end.
    """

    def __init__(self, config: Config, stages: Sequence[Job], root: Path, *, processes: int = 1) -> None:
        self._config, self._stages, self._root, self._processes = config, stages, root, processes
        self._begun: dict[Job, float] = {}

    def begin(self, stage: Job) -> float | None:
        """Note that ``stage`` begins now; seconds until all are done, or None as long as none is."""
        self._begun[stage] = time.monotonic()
        rates = self._rates()
        if not rates:
            return None
        open_ = [stage for stage in self._stages if not stage.is_finished(self._root)]
        return sum(max(0.0, self._expected(stage, rates) - self._spent(stage)) for stage in open_) / self._processes

    def _rates(self) -> list[tuple[Job, float]]:
        """Seconds an epoch of each finished stage that was trained."""
        rates = []
        for stage in self._stages:
            # Without, or with a damaged one, which the stage itself says when it begins.
            with suppress(DamagedError, KeyError, TypeError, ZeroDivisionError):
                result = read_sealed(stage.folder(self._root) / RESULT)
                rates.append((stage, result["seconds"] / result["epochs"]))
        return [(stage, rate) for stage, rate in rates if rate > 0]

    def _expected(self, stage: Job, rates: Sequence[tuple[Job, float]]) -> float:
        if stage.kind == "teacher" and self._config.teacher_file:
            return 0.0
        alike = [
            [rate for done, rate in rates if (done.kind, done.method) == (stage.kind, stage.method)],
            [rate for done, rate in rates if done.kind == stage.kind],
            [rate for _, rate in rates],
        ]
        return mean(next(filter(None, alike))) * self._config.epochs_of(stage.kind)

    def _spent(self, stage: Job) -> float:
        """Seconds that an unfinished stage has had, in this start and in those before."""
        now = time.monotonic()
        return now - self._begun.get(stage, now) + read_seconds(stage.folder(self._root) / SECONDS)
