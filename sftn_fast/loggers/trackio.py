"""Trackio: a database in the run's folder, unless ``TRACKIO_DIR`` or ``TRACKIO_SPACE_ID`` say otherwise."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from shlex import quote
from typing import Any

from sftn_fast.loggers.base import Logger, register


@register("trackio")
class Trackio(Logger):
    """A run in the Trackio project of the run's folder. Runs are continued by their name."""

    module = "trackio"

    _run: Any = None

    @classmethod
    def check(cls, root: Path) -> None:
        """Import the library, which reads its folder at that moment."""
        os.environ.setdefault("TRACKIO_DIR", str(root / "trackio"))
        cls.require()

    @classmethod
    def prepare(cls, root: Path) -> str:
        """Return a line that says where the metrics go."""
        space = os.environ.get("TRACKIO_SPACE_ID")
        return space or f"TRACKIO_DIR={quote(os.environ['TRACKIO_DIR'])} trackio show --project {quote(root.name)}"

    def begin(self, run_id: str | None, step: int) -> str:
        """Start or continue the run."""
        self.check(self.info.root)
        self._run = self.require().init(
            project=self.info.experiment,
            name=self.info.name,
            group=self.info.kind,
            config=dict(self.info.parameters),
            resume="never" if run_id is None else "allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )
        return self.info.name

    def log(self, metrics: Mapping[str, float], step: int, *, row: int) -> None:
        """Queue the values."""
        self._run.log(dict(metrics), step=step)

    def pictures(self, files: Sequence[Path]) -> None:
        """Log the pictures as images, under the names of their files."""
        image = self.require().Image
        self._run.log({file.stem: image(str(file)) for file in files})

    def close(self, *, finished: bool) -> None:
        """Write what is queued and end the run."""
        if self._run is not None:
            self.require().finish()  # of the library, which would finish the run again at the exit
