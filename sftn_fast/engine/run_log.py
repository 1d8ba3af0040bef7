"""Log of a run: lines on stdout, ``metrics.jsonl``, ``summary.csv`` and, if requested, the runs at logging services.

A failure to write never stops a run. It is a warning.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import logging
import os
from pathlib import Path
from types import TracebackType
from typing import Any

from sftn_fast.loggers import OpenRun
from sftn_fast.utils import strict_json
from sftn_fast.utils.atomic import open_in_place, write_atomically
from sftn_fast.utils.progress import ProgressBar, duration, fold

logger = logging.getLogger(__name__)

Record = dict[str, Any]

_SPEED = ("images_per_second", "data_wait", "seconds")


class RunLog:
    """Writer of a run's metrics into ``folder``.

    Args:
        folder: receives the files.
        epochs: epochs of the run, for the lines on stdout.
        step: steps done before.
        offset: bytes of ``metrics.jsonl`` to keep. A resumed run passes its checkpoint's, since it writes the later
            lines again. If the file is shorter, a line in it says so.
        bar: the progress bar to clear before printing, or None.
        services: receive each record too. The caller closes them.
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
        services: OpenRun | None = None,
        quiet: bool = False,
    ):
        self._folder, self._epochs, self._bar, self._quiet = folder, epochs, bar, quiet
        self._warned = False
        self._file: io.FileIO | io.BytesIO
        self._services = None if quiet else services
        if not quiet:
            self._open(folder / "metrics.jsonl", offset, step)

    def _open(self, path: Path, offset: int, step: int) -> None:
        """Open the file and truncate it to ``offset``; use one in memory if it can't be written."""
        try:
            # Unbuffered: a line is in the file, or it failed and later writes don't try it again.
            self._file = os.fdopen(open_log(path), "r+b", buffering=0)
            if self._services is not None:
                self._services.begin(step, _last_steps(self._file, offset))
            size = self._file.seek(0, os.SEEK_END)
            self._file.seek(self._file.truncate(offset if offset <= size else _end_of_last_line(self._file)))
            if offset > size:
                logger.warning("%s was cut short: %d bytes of %d are left", path, size, offset)
                self._write({"kind": "cut", "bytes": size, "expected": offset})
        except OSError as error:
            self._file = io.BytesIO()
            self._file.seek(offset)
            self._warn(error)
            if self._services is not None:
                self._services.begin(step, {})

    def __enter__(self) -> RunLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()
        if not self._quiet:
            self._file.close()

    @property
    def offset(self) -> int:
        """Bytes of ``metrics.jsonl`` so far."""
        return 0 if self._quiet else self._file.tell()

    def progress(self, step: int, epoch: int) -> None:
        """Update the progress bar: ``step`` steps are done, ``epoch`` (from 0) is the current one."""
        if self._bar is not None:
            self._bar.update(step, f"epoch {epoch + 1}/{self._epochs}")

    def train(self, record: Record) -> None:
        """Write the means over the last steps: ``epoch``, ``step``, ``lr``, terms, ``images_per_second`` and so on."""
        self._write({"kind": "train", **record})
        shown = {name: value for name, value in record.items() if name not in ("epoch", *_SPEED)}
        speed = f"{record['images_per_second']:.0f} images/s, {record['data_wait']:.0%} waiting for data"
        self._print(record, f"{_line(shown)}  {speed}")

    def epoch(self, history: list[Record]) -> None:
        """Write the finished epoch, the last of ``history``, and rewrite ``summary.csv``.

        Only evaluated epochs are printed.
        """
        row = history[-1]
        self._write({"kind": "epoch", **row})
        self._write_summary(history)
        if "test_top1" not in row:
            return
        shown = {name: value for name, value in row.items() if name.startswith(("train_total", "val_", "test_"))}
        seconds = self._bar.eta(row["step"]) if self._bar is not None else None
        left = f", {duration(seconds)} left" if seconds else ""
        self._print(row, f"done  {_line(shown)}  {row['seconds']:.1f} s{left}")

    def say(self, text: str) -> None:
        """Clear the progress bar and print a line on stdout."""
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
        line = strict_json.dumps(record).encode() + b"\n"
        start = self._file.tell()
        try:
            if self._file.write(line) != len(line):
                raise OSError(None, "the disk is full")
        except OSError as error:
            with contextlib.suppress(OSError):  # it would hide the first error
                self._file.seek(self._file.truncate(start))
            self._warn(error)
        if self._services is not None and "step" in record:
            self._services.log(record)

    def _write_summary(self, history: list[Record]) -> None:
        if self._quiet:
            return
        try:
            write_summary(self._folder, history)
        except OSError as error:
            self._warn(error)

    def _warn(self, error: OSError) -> None:
        if not self._warned:
            reason = error.strerror or error
            logger.warning("metrics can't be written to %s (%s); training continues", self._folder, reason)
        self._warned = True


def write_summary(folder: Path, history: list[Record]) -> None:
    """Write ``summary.csv`` with a line for each epoch of ``history``.

    Raises:
        OSError: it can't be written; the old file stays.
    """
    text = io.StringIO()
    columns = list(dict.fromkeys(name for row in history for name in row))
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    write_atomically(folder / "summary.csv", text.getvalue())


def open_log(path: Path) -> int:
    """Open a log for reading and writing, and return the descriptor. A file with several hard links is copied first.

    Raises:
        OSError: it can't be opened, or it is a link or not a regular file.
    """
    descriptor = open_in_place(path)
    if os.fstat(descriptor).st_nlink == 1:
        return descriptor
    with os.fdopen(descriptor, "rb") as shared:
        write_atomically(path, shared.read())
    return open_in_place(path)


def _end_of_last_line(file: io.FileIO | io.BytesIO) -> int:
    file.seek(0)
    return file.read().rfind(b"\n") + 1


def _last_steps(file: io.FileIO | io.BytesIO, offset: int) -> dict[str, int]:
    """Return the last step that the file has after ``offset``, by kind of record: what will be logged again."""
    file.seek(offset)
    steps: dict[str, int] = {}
    for line in file.read().splitlines():
        with contextlib.suppress(ValueError, KeyError, TypeError):  # a line that was cut short
            record = json.loads(line)
            steps[record["kind"]] = int(record["step"])
    return steps


def _line(record: Record) -> str:
    return "  ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in record.items()
    )
