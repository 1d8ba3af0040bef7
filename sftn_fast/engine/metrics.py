"""What a run writes down: lines on stdout, ``metrics.jsonl``, ``summary.csv``, and TensorBoard events if asked for.

None of it may stop a run: what can't be written is a warning.
"""

from __future__ import annotations

import csv
import json
import logging
import math
from pathlib import Path
from types import TracebackType
from typing import Any

from sftn_fast.engine.progress import ProgressBar, duration, fold

logger = logging.getLogger(__name__)

Record = dict[str, Any]

_SPEED = ("images_per_second", "data_wait", "seconds")


class RunLog:
    """Writes a run's metrics into ``folder``.

    Args:
        epochs: epochs of the run, for the lines on stdout.
        step: steps done before; TensorBoard forgets what it was told of later ones.
        offset: bytes of ``metrics.jsonl`` that stand; a resumed run gives its checkpoint's, so that what was written
            after that checkpoint, and will be again, goes.
        bar: the progress bar to keep clear of, or None.
        tensorboard: also write TensorBoard events.
        quiet: write and print nothing; for all ranks but the first.
    """

    def __init__(
        self,
        folder: Path,
        *,
        epochs: int,
        step: int = 0,
        offset: int = 0,
        bar: ProgressBar | None = None,
        tensorboard: bool = False,
        quiet: bool = False,
    ):
        self._folder, self._epochs, self._bar, self._quiet = folder, epochs, bar, quiet
        self._warned = False
        self._board = _open_tensorboard(folder, step) if tensorboard and not quiet else None
        if not quiet:
            # Unbuffered: a line is in the file or it failed, and a failed one is not tried again at every later write.
            self._file = (folder / "metrics.jsonl").open("ab", buffering=0)
            self._file.seek(self._file.truncate(min(offset, self._file.tell())))

    def __enter__(self) -> RunLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.clear()
        if not self._quiet:
            self._file.close()
        if self._board is not None:
            self._board.close()

    @property
    def offset(self) -> int:
        """Bytes of ``metrics.jsonl`` so far."""
        return 0 if self._quiet else self._file.tell()

    def progress(self, step: int, epoch: int) -> None:
        """Move the progress bar: ``step`` steps are done, ``epoch`` (from 0) is under way."""
        if self._bar is not None:
            self._bar.update(step, f"epoch {epoch + 1}/{self._epochs}")

    def train(self, record: Record) -> None:
        """Note the means over the last steps: ``epoch``, ``step``, ``lr``, terms, ``images_per_second`` and so on."""
        self._write({"kind": "train", **record})
        shown = {name: value for name, value in record.items() if name not in ("epoch", *_SPEED)}
        speed = f"{record['images_per_second']:.0f} images/s, {record['data_wait']:.0%} waiting for data"
        self._print(record, f"{_line(shown)}  {speed}")

    def epoch(self, history: list[Record]) -> None:
        """Note the epoch that ended, the last of ``history``, and write ``summary.csv`` anew.

        Only an epoch that was evaluated is printed.
        """
        row = history[-1]
        self._write({"kind": "epoch", **row})
        self._write_summary(history)
        if "test_top1" not in row:
            return
        shown = {name: value for name, value in row.items() if name.startswith(("train_total", "val_", "test_"))}
        seconds = self._bar.left(row["step"]) if self._bar is not None else None
        left = f", {duration(seconds)} left" if seconds else ""
        self._print(row, f"done  {_line(shown)}  {row['seconds']:.1f} s{left}")

    def say(self, text: str) -> None:
        """Print a line on stdout, clear of the progress bar."""
        if not self._quiet:
            if self._bar is not None:
                self._bar.clear()
            try:
                print(text, flush=True)
            except OSError as error:  # a closed pipe, or a file on a full disk
                self._warn(error)

    def _print(self, record: Record, text: str) -> None:
        start = f"epoch {record['epoch']}/{self._epochs}  "
        self.say(fold(start + text, indent=len(start)))

    def _write(self, record: Record) -> None:
        if self._quiet:
            return
        line = (
            json.dumps({name: _json_number(value) for name, value in record.items()}, allow_nan=False).encode() + b"\n"
        )
        start = self._file.tell()
        try:
            if self._file.write(line) != len(line):
                raise OSError(None, "the disk is full")
        except OSError as error:
            self._file.seek(self._file.truncate(start))
            self._warn(error)
        if self._board is not None:
            for name, value in record.items():
                if isinstance(value, float):
                    self._board.add_scalar(f"{record['kind']}/{name}", value, record["step"])

    def _write_summary(self, history: list[Record]) -> None:
        if self._quiet:
            return
        columns = list(dict.fromkeys(name for row in history for name in row))
        temporary = self._folder / ".tmp_summary.csv"
        try:
            with temporary.open("w", newline="") as file:
                writer = csv.DictWriter(file, columns, lineterminator="\n")
                writer.writeheader()
                writer.writerows(history)
            temporary.replace(self._folder / "summary.csv")
        except OSError as error:
            temporary.unlink(missing_ok=True)
            self._warn(error)

    def _warn(self, error: OSError) -> None:
        if not self._warned:
            logger.warning("metrics can't be written to %s (%s); training goes on", self._folder, error.strerror)
        self._warned = True


def _open_tensorboard(folder: Path, step: int) -> Any:
    """A TensorBoard writer, or None and a warning that says why not and what to do."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except Exception as error:
        logger.warning(
            "engine.tensorboard is on, but the package does not import (%s); training goes on without. "
            "Install it with: pip install 'sftn_fast[tensorboard]'",
            error,
        )
        return None
    return SummaryWriter(folder / "tensorboard", purge_step=step + 1)


def _json_number(value: Any) -> Any:
    """JSON has no NaN and no infinity: null."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _line(record: Record) -> str:
    return "  ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in record.items()
    )
