"""Weights & Biases. Without a key it records offline, for ``wandb sync``; it never asks for one."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from shlex import quote
from typing import Any

from sftn_fast.loggers.base import Logger, LoggerError, register
from sftn_fast.loggers.guard import reason

PROJECT = "sftn_fast"
START_SECONDS, END_SECONDS = 30, 60
"""Longest waits for the server: for a run to begin, and for its data to be uploaded at the end."""


@register("wandb")
class WeightsAndBiases(Logger):
    """A run in the group of its experiment, with the kind of the job as its type."""

    module = "wandb"

    _run: Any = None

    @classmethod
    def check(cls, root: Path) -> None:
        """Log in, if a key is configured and ``WANDB_MODE`` doesn't say offline."""
        library = cls.require()
        if os.environ.get("WANDB_MODE", "online") not in ("online", "shared"):
            return
        try:
            library.login(prompt=False, verify=True)
        except Exception as error:
            raise LoggerError(
                f"logger wandb can't log in: {reason(error)}; WANDB_MODE=offline records into the run's folder instead"
            ) from error

    @classmethod
    def prepare(cls, root: Path) -> str:
        """Return a line that says where the metrics go."""
        mode = cls._mode()
        folder = Path(os.environ.get("WANDB_DIR", root)) / "wandb"
        return f"offline, upload with: wandb sync {quote(str(folder))}/offline-run-*" if mode == "offline" else mode

    @classmethod
    def _mode(cls) -> Any:
        """Return the mode that ``WANDB_MODE`` says, else online with a key and offline without one."""
        if mode := os.environ.get("WANDB_MODE"):
            return mode
        return "online" if cls.require().login(prompt=False, verify=False) else "offline"

    def begin(self, run_id: str | None, step: int) -> str:
        """Start or continue the run."""
        library, info = self.require(), self.info
        run_id = run_id or secrets.token_hex(4)
        os.environ.setdefault("WANDB_CACHE_DIR", str(info.root / "wandb" / "cache"))
        self._run = library.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            group=info.experiment,
            job_type=info.kind,
            name=info.name,
            id=run_id,
            resume="allow",
            mode=self._mode(),
            dir=os.environ.get("WANDB_DIR", str(info.root)),
            config=dict(info.parameters),
            allow_val_change=True,
            settings=library.Settings(
                console="off",
                silent=True,
                init_timeout=START_SECONDS,
                finish_timeout=END_SECONDS,
                finish_timeout_raises=True,
                reinit="create_new",
            ),
        )
        # The library's own step must grow with each call, and a resumed run may have two records of one step to log.
        self._run.define_metric("*", step_metric="step")
        return run_id

    def log(self, metrics: Mapping[str, float], step: int, *, row: int) -> None:
        """Log a row of values."""
        self._run.log({"step": step, **metrics}, step=row)

    def pictures(self, files: Sequence[Path]) -> None:
        """Log the pictures as images, under the names of their files."""
        image = self.require().Image
        self._run.log({file.stem: image(str(file)) for file in files})

    def close(self, *, finished: bool) -> None:
        """Wait for the upload and end the run."""
        if self._run is None:
            return
        try:
            self._run.finish(exit_code=0 if finished else 1)
        except Exception:
            self.require().teardown()  # else the library tries again at the exit, and prints a traceback
            raise
