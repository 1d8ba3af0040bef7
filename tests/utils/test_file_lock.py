"""Locks, also where the system has others than flock or none."""

from __future__ import annotations

import errno
import importlib.util
import os
import pkgutil
import sys
from pathlib import Path

import pytest

from sftn_fast import engine, utils
from sftn_fast.engine import FolderError, RunFolder
from sftn_fast.utils import file_lock
from sftn_fast.utils.file_lock import REGION, try_lock


class FakeMsvcrt:
    """Windows' locks: one byte where the descriptor stands, exclusive."""

    LK_NBLCK = 2

    def __init__(self) -> None:
        self.locked: list[tuple[int, int]] = []

    def locking(self, descriptor: int, mode: int, size: int) -> None:
        assert (mode, size) == (self.LK_NBLCK, 1)
        place = os.lseek(descriptor, 0, os.SEEK_CUR), os.fstat(descriptor).st_ino
        if place in self.locked:
            raise PermissionError(errno.EACCES, "Permission denied")
        self.locked.append(place)


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> FakeMsvcrt:
    fake = FakeMsvcrt()
    monkeypatch.setattr(file_lock, "fcntl", None)
    monkeypatch.setattr(file_lock, "msvcrt", fake)
    return fake


def test_one_descriptor_at_a_time(tmp_path: Path) -> None:
    with (tmp_path / "file").open("w") as first, (tmp_path / "file").open("w") as second:
        try_lock(first.fileno())
        for shared in (False, True):
            with pytest.raises(BlockingIOError):
                try_lock(second.fileno(), shared=shared)


def test_shared_locks_exclude_the_other_kind_alone(tmp_path: Path) -> None:
    with (tmp_path / "file").open("w") as first, (tmp_path / "file").open("w") as second:
        for file in (first, second):
            try_lock(file.fileno(), shared=True)
        with pytest.raises(BlockingIOError):
            try_lock(first.fileno())


def test_on_windows_a_byte_past_the_content_is_locked(tmp_path: Path, windows: FakeMsvcrt) -> None:
    with RunFolder(tmp_path) as folder:
        assert (folder / ".lock").read_text().startswith(f"{os.getpid()} on ")
        assert windows.locked == [(REGION, (folder / ".lock").stat().st_ino)]
        with pytest.raises(FolderError, match=f"in use by another run.*{os.getpid()}"):
            RunFolder(tmp_path).__enter__()
        with pytest.raises(FolderError, match="in use by another run"):
            RunFolder(tmp_path).check_free()


def test_without_any_locks_a_line_says_so_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(file_lock, "fcntl", None)
    monkeypatch.setattr(file_lock, "msvcrt", None)
    with RunFolder(tmp_path / "run") as folder:
        (folder / "file").write_text("")
    (record,) = caplog.records
    expected = (
        f"{tmp_path / 'run'} can't be locked (this Python has no file locks): make sure that only one run uses it"
    )
    assert record.getMessage() == expected


MODULES = [
    f"{package.__name__}.{module.name}"
    for package in (engine, utils)
    for module in pkgutil.iter_modules(package.__path__)
]


@pytest.mark.parametrize("name", MODULES)
def test_modules_import_where_python_lacks_what_windows_lacks(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.find_spec(name)
    assert spec is not None and spec.loader is not None
    monkeypatch.setitem(sys.modules, "fcntl", None)
    for missing in ("O_NOFOLLOW", "O_CLOEXEC", "O_NONBLOCK", "uname", "pwrite"):
        monkeypatch.delattr(os, missing)
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
