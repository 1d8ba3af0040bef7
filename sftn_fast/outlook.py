"""How long an experiment still takes, judged by the stages that are finished, in this start or an earlier one."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

from sftn_fast.config import Config
from sftn_fast.plan import RESULT, Stage
from sftn_fast.stage import SECONDS


class Outlook:
    """Expects a stage to take, for each of its epochs, what finished stages took: the same losses, else the same kind,
    else all.

    Args:
        config: Of the experiment.
        stages: All of them.
        root: The run's folder, whose ``result.json`` files say what a stage took.
        processes: How many stages run side by side; they are taken to be busy to the end.
    """

    def __init__(self, config: Config, stages: Sequence[Stage], root: Path, *, processes: int = 1) -> None:
        self._config, self._stages, self._root, self._processes = config, stages, root, processes
        self._begun: dict[Stage, float] = {}

    def begin(self, stage: Stage) -> float | None:
        """Note that ``stage`` begins now; seconds until all are done, or None as long as none is."""
        self._begun[stage] = time.monotonic()
        rates = self._rates()
        if not rates:
            return None
        open_ = [stage for stage in self._stages if not stage.is_finished(self._root)]
        return sum(max(0.0, self._expected(stage, rates) - self._spent(stage)) for stage in open_) / self._processes

    def _rates(self) -> list[tuple[Stage, float]]:
        """Seconds an epoch of each finished stage that was trained."""
        results = [
            (stage, json.loads((stage.folder(self._root) / RESULT).read_text()))
            for stage in self._stages
            if stage.is_finished(self._root)
        ]
        return [(stage, result["seconds"] / result["epochs"]) for stage, result in results if result["seconds"]]

    def _expected(self, stage: Stage, rates: Sequence[tuple[Stage, float]]) -> float:
        if stage.kind == "teacher" and self._config.teacher_file:
            return 0.0
        alike = [
            [rate for done, rate in rates if (done.kind, done.method) == (stage.kind, stage.method)],
            [rate for done, rate in rates if done.kind == stage.kind],
            [rate for _, rate in rates],
        ]
        return mean(next(filter(None, alike))) * self._config.epochs_of(stage.kind)

    def _spent(self, stage: Stage) -> float:
        """Seconds that an unfinished stage has had, in this start and in those before."""
        now, before = time.monotonic(), stage.folder(self._root) / SECONDS
        return now - self._begun.get(stage, now) + (float(before.read_text()) if before.is_file() else 0.0)
