from __future__ import annotations

import os
import signal
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from sftn_fast.config import ConfigError
from sftn_fast.engine import FolderError, RunFolder

from .faults import processes


@pytest.mark.parametrize("name", ["plain", "with space", "größe/ünïcode", "a/b/../c"])
def test_a_folder_is_made_and_resolved(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with RunFolder(name) as folder:
        assert folder == (tmp_path / name).resolve() and folder.is_dir()
        monkeypatch.chdir("/")
        (folder / "file").write_text("still the same folder")
    assert (folder / "file").exists()


def test_the_home_folder_is_known(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    with RunFolder("~/runs") as folder:
        assert folder == tmp_path / "runs"


def test_a_second_run_in_the_folder_is_refused(tmp_path):
    with RunFolder(tmp_path), pytest.raises(FolderError, match=f"in use by another run.*{os.getpid()}"):
        RunFolder(tmp_path).__enter__()
    with RunFolder(tmp_path):
        pass
    assert issubclass(FolderError, ConfigError)


def hold(folder: Path, report: Connection) -> None:
    with RunFolder(folder):
        report.send("locked")
        signal.pause()


def test_a_killed_run_leaves_no_lock(tmp_path):
    here, there = processes.Pipe(duplex=False)
    child = processes.Process(target=hold, args=(tmp_path, there))
    child.start()
    assert here.recv() == "locked"
    with pytest.raises(FolderError, match=f"in use by another run.*{child.pid}"):
        RunFolder(tmp_path).__enter__()
    child.kill()
    child.join()
    with RunFolder(tmp_path):
        pass


def test_a_file_in_the_way_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(FolderError, match="can't be written to"):
            RunFolder(path).__enter__()


@pytest.fixture
def ordinary_user(request):
    """Become nobody for the test, because permissions don't stop root."""
    if os.geteuid() == 0:
        os.seteuid(65534)
        request.addfinalizer(lambda: os.seteuid(0))


def test_a_read_only_folder_is_refused(tmp_path, ordinary_user):
    for path in ("/", "/runs"):
        with pytest.raises(FolderError, match=f"{path} can't be written to: Permission denied"):
            RunFolder(path).__enter__()
