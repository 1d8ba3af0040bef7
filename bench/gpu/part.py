"""Parts of a session: commands with a time limit, some of them side by side."""

from __future__ import annotations

import importlib.util
import math
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from sftn_fast.utils.atomic import describe

ROOT = Path(__file__).resolve().parents[2]
WORTHWHILE = 2.0
"""Seconds below which no part is started."""
POLL = 0.05
"""Seconds between two looks at the running parts."""
PATIENCE = 5.0
"""Seconds for a killed process to end. One that waits for a broken driver may never do so."""
LOG_LIMIT = 2**22
"""Bytes at the end of a log that are read."""
TAIL = 15
"""Lines of a failed part's log that are printed."""


def end_of(path: Path) -> str:
    """Return the end of a log, which may have grown without limit. A log that is not there is empty."""
    try:
        with path.open("rb") as log:
            log.seek(max(0, path.stat().st_size - LOG_LIMIT))
            return log.read().decode(errors="replace")
    except OSError:
        return ""


def last_line(log: str) -> str:
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    return lines[-1].strip("= ")[:160] if lines else "no output"


@dataclass(frozen=True)
class Part:
    """A command with a time limit and a function that sums up its log in a line."""

    name: str
    command: list[str]
    limit: float  # seconds
    environment: dict[str, str] = field(default_factory=dict)
    needs: tuple[str, ...] = ()  # programs, and Python modules as "module:NAME"
    gpu_only: bool = False
    detail: Callable[[str], str] = last_line
    fallback: Part | None = None  # runs if this one fails
    essential: bool = False  # nothing follows if this one and its fallback fail


@dataclass(frozen=True)
class Outcome:
    name: str
    result: str  # ok, FAILED, TIMED OUT, or not run
    seconds: float
    detail: str

    @property
    def bad(self) -> bool:
        return self.result in ("FAILED", "TIMED OUT")

    def __str__(self) -> str:
        return f"{self.name:22} {self.result:10} {self.seconds:7.1f} s  {self.detail}"


def missing(part: Part, device: str) -> str | None:
    """Return the reason why a part can't run here, None if it can."""
    if part.gpu_only and device != "cuda":
        return "for a GPU"
    for need in part.needs:
        kind, _, name = need.rpartition(":")
        found = _module(name) if kind == "module" else shutil.which(name)
        if not found:
            return f"{name} is not installed"
    return None


def _module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # the package that a submodule would be in
        return False


class Running:
    """A started part. Its output is in ``folder/<name>.log``, and its children end with it."""

    def __init__(self, part: Part, folder: Path, left: float) -> None:
        self.part, self._path = part, folder / f"{part.name}.log"
        self._start = time.monotonic()
        self._limit = min(part.limit, left)
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", "KINETO_LOG_LEVEL": "99", **part.environment}
        with self._path.open("w") as log:
            log.write(f"$ {' '.join(part.command)}\n")
            log.flush()
            self._process = subprocess.Popen(
                part.command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )

    def outcome(self) -> Outcome | None:
        """Return the outcome if the part has ended or its time is over, else None."""
        seconds, code = time.monotonic() - self._start, self._process.poll()
        if code is None and seconds < self._limit:
            return None
        self.end()
        result = "TIMED OUT" if code is None else "ok" if code == 0 else "FAILED"
        return Outcome(self.part.name, result, seconds, self._detail())

    def _detail(self) -> str:
        log = self.log()
        try:
            return self.part.detail(log)
        except Exception as error:  # a tool of another version may print anything
            return f"{last_line(log)} (not summed up: {type(error).__name__}: {error})"

    def log(self) -> str:
        return end_of(self._path)

    def end(self) -> None:
        """Kill the process and its children, if they still run."""
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            return
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(PATIENCE)


def run_together(
    parts: Sequence[Part],
    folder: Path,
    device: str,
    left: float = math.inf,
    each_moment: Callable[[], None] = lambda: None,
) -> list[Outcome]:
    """Run parts side by side for at most ``left`` seconds each and return their outcomes.

    ``each_moment`` is called again and again while they run.
    """
    outcomes: dict[str, Outcome] = {}
    running: list[Running] = []
    try:
        for part in parts:
            reason = missing(part, device) or ("no time left" if left < WORTHWHILE else None)
            if reason:
                outcomes[part.name] = Outcome(part.name, "not run", 0.0, reason)
                continue
            try:
                running.append(Running(part, folder, left))
            except OSError as error:  # a program that can't be executed, a full disk
                outcomes[part.name] = Outcome(part.name, "FAILED", 0.0, describe(error))
        while running:
            time.sleep(POLL)
            each_moment()
            for started in list(running):
                outcome = started.outcome()
                if outcome is not None:
                    outcomes[outcome.name] = outcome
                    running.remove(started)
    finally:
        for started in running:
            started.end()
    return [outcomes[part.name] for part in parts]


def tail(folder: Path, name: str) -> str:
    """Return the end of a part's log."""
    lines = end_of(folder / f"{name}.log").splitlines()
    return "\n".join(line[:300] for line in lines[-TAIL:])
