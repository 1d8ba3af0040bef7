"""A session in progress: its parts run one stage after the other, and its archive grows with them."""

from __future__ import annotations

import datetime
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from bench.gpu import archive
from bench.gpu.part import Outcome, run_together
from bench.gpu.plan import Stage

SAVE_EVERY = 15.0
"""Seconds between two archives while parts run: what is measured is lost only for so long."""


class Session:
    """A run in progress: its outcomes, and the archive that is written from them."""

    def __init__(self, run: str, device: str, folder: Path, output: Path, seconds: float) -> None:
        self.run, self.device, self.folder = run, device, folder
        self.target = archive.target(output, run)
        self.outcomes: list[Outcome] = []
        self.unsaved: str | None = None  # the reason why the archive is not complete
        self._end_at = time.monotonic() + seconds
        self._saved_at = -SAVE_EVERY

    @property
    def left(self) -> float:
        return max(0.0, self._end_at - time.monotonic())

    def execute(self, stages: Sequence[Stage]) -> None:
        """Run the stages one after the other, until an essential part fails."""
        for stage in stages:
            for part in stage:
                print(f"== {part.name}, at most {min(part.limit, self.left):.0f} s", flush=True)
            found = run_together(stage, self.folder, self.device, self.left, self.save_sometimes)
            lacking = self._lacking(stage, found)
            if lacking:
                print(f"the run ends: nothing works without {' and '.join(lacking)}", flush=True)
                break
        self.save()

    def _lacking(self, stage: Stage, found: list[Outcome]) -> list[str]:
        """Keep outcomes, run fallbacks, and return the names of essential parts that failed all the same."""
        lacking = []
        for part, outcome in zip(stage, found, strict=True):
            self.outcomes.append(outcome)
            print(outcome, flush=True)
            if outcome.result != "ok" and part.fallback is not None:
                (outcome,) = run_together([part.fallback], self.folder, self.device, self.left, self.save_sometimes)
                self.outcomes.append(outcome)
                print(outcome, flush=True)
            if outcome.result != "ok" and part.essential:
                lacking.append(part.name)
        self.save()
        return lacking

    def save_sometimes(self) -> None:
        if time.monotonic() - self._saved_at >= SAVE_EVERY:
            self.save()

    def save(self) -> None:
        """Write the archive as things stand. A full disk ends no part: the next call tries again."""
        self._saved_at = time.monotonic()
        try:
            left_out, self.unsaved = self._write(), None
        except OSError as error:
            self.unsaved = f"{error.filename or self.target}: {error.strerror or error}"
            print(f"the archive is not written: {self.unsaved}", file=sys.stderr, flush=True)
            return
        for name in left_out:
            print(f"left out of the archive: {name}", file=sys.stderr)

    def _write(self) -> list[str]:
        about = self.folder / "about.json"
        session = {
            "run": self.run,
            "device": self.device,
            "date": datetime.date.today().isoformat(),
            "conditions": json.loads(about.read_text()) if about.exists() else {},
            "outcomes": [asdict(outcome) for outcome in self.outcomes],
        }
        (self.folder / archive.SESSION).write_text(json.dumps(session, indent=1) + "\n")
        return archive.write(self.folder, self.target)
