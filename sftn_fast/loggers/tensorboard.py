"""TensorBoard: event files in the folder of each training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from shlex import quote
from typing import Any

from sftn_fast.loggers.base import Logger, register


@register("tensorboard")
class TensorBoard(Logger):
    """Writer of events into ``tensorboard/`` in the training's folder."""

    module = "torch.utils.tensorboard"
    replaces = True

    _writer: Any = None

    @classmethod
    def prepare(cls, root: Path) -> str:
        """Return a line that says where the events are."""
        return f"tensorboard --logdir {quote(str(root))}"

    def begin(self, run_id: str | None, step: int) -> str:
        """Open the event file. Events of later steps are dropped."""
        self._writer = self.require().SummaryWriter(self.info.folder / "tensorboard", purge_step=step + 1)
        if step == 0 and self.info.parameters:
            rows = (f"| {name} | {value} |" for name, value in self.info.parameters.items())
            self._writer.add_text("parameters", "\n".join(["| name | value |", "|---|---|", *rows]))
        return "tensorboard"

    def log(self, metrics: Mapping[str, float], step: int, *, row: int) -> None:
        """Add an event for each value."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def pictures(self, files: Sequence[Path]) -> None:
        """Add the pictures as images."""
        import numpy as np
        from PIL import Image

        for file in files:
            with Image.open(file) as image:
                self._writer.add_image(file.stem, np.asarray(image.convert("RGB")), dataformats="HWC")

    def close(self, *, finished: bool) -> None:
        """Write what is queued and close the file."""
        if self._writer is not None:
            self._writer.close()
