"""The runs of one training at all its services. A service that fails is reported once and left alone from then on."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from sftn_fast.loggers import run_ids
from sftn_fast.loggers.base import Logger, RunInfo, find
from sftn_fast.loggers.guard import reason, undisturbed

logger = logging.getLogger(__name__)

KINDS = ("train", "epoch", "result")
"""Kinds of records, in the order in which those of one step are logged."""


class Services:
    """The loggers that a process uses for the trainings of an experiment.

    Args:
        names: Of the loggers. None on all ranks but the first.
    """

    def __init__(self, names: Sequence[str] = ()) -> None:
        self.names = tuple(dict.fromkeys(names))
        self._failed: set[str] = set()

    def open(self, info: RunInfo) -> OpenRun:
        """Return the runs of the training ``info`` at all services that have not failed."""
        return OpenRun(self, info)

    def working(self) -> list[str]:
        """Return the loggers that have not failed."""
        return [name for name in self.names if name not in self._failed]

    def give_up(self, name: str, error: BaseException) -> None:
        """Report the failure of a logger, which is not used again by this process."""
        self._failed.add(name)
        logger.warning("logger %s failed and is off; training continues without it: %s", name, reason(error))


class OpenRun:
    """One training's run at each service. As a context it ends them; an exception means that it isn't finished."""

    def __init__(self, services: Services, info: RunInfo) -> None:
        self._services, self._info = services, info
        self._loggers: dict[str, Logger] = {}
        self._ids: dict[str, str] = {}
        self._sent: dict[str, run_ids.Sent] = {}
        self._step = 0

    def __enter__(self) -> OpenRun:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(finished=kind is None)

    def begin(self, step: int, sent: Mapping[str, int]) -> None:
        """Start the runs, or continue those of an earlier start, which has logged up to ``sent``.

        Args:
            step: Steps that the training has done before.
            sent: The last step logged by earlier starts, by kind of record.
        """
        self._step = step
        for name in self._services.working():
            if name not in self._loggers:
                self._call(name, partial(self._begin, name, step, sent))

    def _begin(self, name: str, step: int, sent: Mapping[str, int]) -> None:
        known = run_ids.read(self._info.folder).get(name)
        # Kept from here on, also if it fails: closing stops its threads and processes.
        self._loggers[name] = service = find(name)(self._info)
        run_id = service.begin(known.id if known else None, step)
        continues = known is not None and known.id == run_id and not service.replaces
        self._ids[name] = run_id
        self._sent[name] = run_ids.later(known.sent, sent) if continues and known else {}
        self._remember(name)

    def _remember(self, name: str) -> None:
        run_ids.write(self._info.folder, name, run_ids.Entry(self._ids[name], self._sent[name]))

    def log(self, record: Mapping[str, Any]) -> None:
        """Log all fractional numbers of a record with ``kind`` and ``step``, named KIND/NAME."""
        kind, step = record["kind"], record["step"]
        metrics = {f"{kind}/{name}": value for name, value in record.items() if isinstance(value, float)}
        self._step = max(self._step, step)
        row = len(KINDS) * step + KINDS.index(kind)
        for name, service in list(self._loggers.items()):
            if step > self._sent[name].get(kind, -1):
                self._call(name, partial(service.log, metrics, step, row=row))
                self._sent[name][kind] = step

    def results(self, figures: Mapping[str, float]) -> None:
        """Log the final figures of the training at its last step."""
        self.begin(self._step, {})  # if nothing was trained
        self.log({"kind": "result", "step": self._step, **{name: float(value) for name, value in figures.items()}})

    def pictures(self, files: Sequence[Path]) -> None:
        """Log image files."""
        for name, service in list(self._loggers.items()):
            self._call(name, partial(service.pictures, files))

    def close(self, *, finished: bool) -> None:
        """End the runs for now."""
        for name in list(self._loggers):
            self._call(name, partial(self._close, name, finished))

    def _close(self, name: str, finished: bool) -> None:
        self._loggers.pop(name).close(finished=finished)
        self._remember(name)

    def _call(self, name: str, call: Callable[[], None]) -> None:
        """Call a logger. Whatever it raises is reported once, and the logger dropped."""
        try:
            with undisturbed():
                call()
        except (Exception, SystemExit) as error:  # of any library
            self._services.give_up(name, error)
            failed = self._loggers.pop(name, None)
            if failed is not None:
                with suppress(Exception, SystemExit), undisturbed():
                    failed.close(finished=False)
