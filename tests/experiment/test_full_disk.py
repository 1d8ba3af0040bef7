"""No room left at every file that a run writes: one line, or a warning; and what is there is gone on with.

Each file is tried at its first call that needs room and at its last one, the sync of its folder. What happens at those
between is the same for all files: tests/utils/test_atomic.py has them.
"""

from __future__ import annotations

import dataclasses
import errno
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from sftn_fast import cli, models, report, train
from sftn_fast.config import Config
from sftn_fast.engine import divergence
from sftn_fast.utils import run_files
from sftn_fast.utils.atomic import write_atomically

TINY = ["--config", "demo", "--data.name", "fake", "--data.train_size", "32", "--data.image_size", "8"]
TINY += ["--engine.checkpoint_every", "null"]
TINY += ["--optim.batch_size", "16", "--epochs", "1", "--seeds", "[0]", "--student", "resnet8", "--stages", "[student]"]
TINY += ["--engine.log_every", "1", "--engine.threads", "1"]
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class Disk:
    """The disk below ``root``, as far as the calls go that need room on it: the one numbered ``full_at`` fails.

    From then on all do if it ``stays`` full. ``places`` has the place in the sources that each call comes from.
    """

    def __init__(self, root: Path, patch: pytest.MonkeyPatch) -> None:
        self.root, self.calls, self.full_at, self.stays = str(root), 0, -1, False
        self.places: list[str] = []
        for name in ("rename", "replace"):
            patch.setattr(os, name, self._guarded(getattr(os, name), lambda _, target: str(target)))
        patch.setattr(os, "mkdir", self._guarded(os.mkdir, lambda path, *_: str(path)))
        for name in ("write", "fsync"):
            patch.setattr(os, name, self._guarded(getattr(os, name), self._path_of))
        self._open = os.open
        patch.setattr(os, "open", self._opened)

    def arm(self, full_at: int, *, stays: bool) -> None:
        self.calls, self.full_at, self.stays = 0, full_at, stays
        self.places.clear()

    def _path_of(self, descriptor: int, *_: Any) -> str:
        return str(Path(f"/proc/self/fd/{descriptor}").readlink())

    def _opened(self, path: Any, flags: int, *arguments: Any, **options: Any) -> int:
        if flags & WRITES:
            self._take(str(path))
        return self._open(path, flags, *arguments, **options)

    def _guarded(self, call: Callable[..., Any], path_of: Callable[..., str]) -> Callable[..., Any]:
        def guarded(*arguments: Any, **options: Any) -> Any:
            self._take(path_of(*arguments))
            return call(*arguments, **options)

        return guarded

    def _take(self, path: str) -> None:
        if path.startswith(self.root):
            self.calls += 1
            self.places.append(writing_place())
            if self.calls == self.full_at or (self.stays and 0 <= self.full_at < self.calls):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def writing_place() -> str:
    """Return the file and line that asked for a write: the innermost of the package's, save those that all share."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if "/sftn_fast/" in file and not file.endswith("utils/atomic.py"):
            return f"{file}:{frame.f_lineno}"
        frame = frame.f_back
    raise AssertionError("nothing of the package asked for this write")


def first_and_last(places: list[str]) -> list[int]:
    """Return the numbers of the first and the last of each group of calls from one place, counted from 1."""
    ends = [i for i in range(len(places)) if i + 1 == len(places) or places[i] != places[i + 1]]
    return sorted({1, *(end + 1 for end in ends), *(end + 2 for end in ends[:-1])})


def draw(folder: Path, *_: Any) -> tuple[list[tuple[str, Path]], str]:
    for name in ("report.png", "curves.png"):
        write_atomically(folder / name, b"a picture")
    return [("results", folder / "report.png")], "plot"


@pytest.fixture(scope="module")
def config() -> Config:
    return cli.parse([*TINY, "--output", "unused"])[0]


@pytest.fixture(scope="module")
def unbroken(config: Config, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    output = tmp_path_factory.mktemp("unbroken") / "run"
    train.run(dataclasses.replace(config, output=str(output)))
    return models.read_files(output / "student")


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    monkeypatch.setattr(report.writer, "draw", draw)
    yield Disk(tmp_path / "run", monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("stays", [True, False], ids=["stays full", "full once"])
def test_every_file_of_a_run_may_fail(
    tmp_path: Path, disk: Disk, config: Config, unbroken: dict[str, bytes], stays: bool, capsys, caplog
) -> None:
    run, codes = tmp_path / "run", []
    config = dataclasses.replace(config, output=str(run))
    disk.arm(-1, stays=False)
    assert train._run(cli.Parsed(config, "test", []), dry=False) == 0
    shutil.rmtree(run)
    numbers = first_and_last(disk.places)[stays::2]  # every place, in one of the two ways
    assert len(numbers) > 20
    for number in numbers:
        disk.arm(number, stays=stays)
        code = train._run(cli.Parsed(config, "test", []), dry=False)
        assert disk.calls >= number
        codes.append(code)
        error = capsys.readouterr().err
        assert code in (0, 1, 2) and error.count("\n") == (code != 0), (number, error)
        assert code != 2 or "output folder" in error, (number, error)
        assert code == 0 or "No space left on device" in error, (number, error)
        disk.arm(-1, stays=False)
        assert train._run(cli.Parsed(config, "test", []), dry=False) == 0, (number, capsys.readouterr().err)
        assert models.read_files(run / "student") == unbroken, number
        assert models.verify(run / "seed0" / "student" / "best") is None, number
        assert run_files.faults(run / "seed0" / "student", run_files.read_result(run / "seed0" / "student")) == {}
        assert sorted(path.name for path in run.iterdir() if path.name.startswith(".")) == [".lock"], number
        shutil.rmtree(run)
        caplog.clear()
    assert 1 in codes and (stays or 0 in codes)


@pytest.mark.parametrize("at", ["checkpoint", "summary.csv", "result.json", "report.md"])
def test_a_folder_that_is_removed_during_the_run_is_one_line(
    tmp_path: Path, config: Config, monkeypatch: pytest.MonkeyPatch, at: str, capsys
) -> None:
    run = tmp_path / "run"
    original = os.open

    def remove_first(path: Any, flags: int, *arguments: Any, **options: Any) -> int:
        wanted = "checkpoints" if at == "checkpoint" else at
        if flags & os.O_CREAT and wanted in str(path):
            shutil.rmtree(run, ignore_errors=True)
        return original(path, flags, *arguments, **options)

    monkeypatch.setattr(report.writer, "draw", draw)
    monkeypatch.setattr(os, "open", remove_first)
    assert train._run(cli.Parsed(dataclasses.replace(config, output=str(run)), "test", []), dry=False) == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert not run.exists()


@pytest.mark.parametrize("stage", ["student", "sftn", "collaborate"])
def test_a_folder_that_is_removed_when_the_training_has_ended_is_one_line(
    tmp_path: Path, config: Config, monkeypatch: pytest.MonkeyPatch, stage: Any, capsys
) -> None:
    """A branch and peers are saved first, and may not make the folder again."""
    run = tmp_path / "run"
    monkeypatch.setattr(report.writer, "draw", draw)
    monkeypatch.setattr(divergence, "verdict", lambda *_, **__: shutil.rmtree(run))
    changed = dataclasses.replace(config, stages=(stage,), output=str(run))
    assert train._run(cli.Parsed(changed, "test", []), dry=False) == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert not run.exists()
