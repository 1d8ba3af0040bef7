"""Systems other than Linux: a missing function costs a feature, never the import."""

from __future__ import annotations

import importlib.util
import os
import signal
import sys

import pytest

from sftn_fast.utils import file_lock

LACKING = {
    "sftn_fast.data.files",
    "sftn_fast.data.decoder_processes",
    "sftn_fast.data.torchvision_decoder",
    "sftn_fast.data.verify",
    "sftn_fast.data.regular_files",
    "sftn_fast.data.resources",
}


@pytest.fixture
def windows(monkeypatch):
    """Python without the functions that only POSIX or only Linux has."""
    monkeypatch.setitem(sys.modules, "fcntl", None)
    monkeypatch.setattr(file_lock, "fcntl", None)
    monkeypatch.delattr(signal, "SIGUSR1")
    for name in ("pidfd_open", "sched_getaffinity", "sysconf", "O_NOFOLLOW", "O_NONBLOCK"):
        monkeypatch.delattr(os, name)


def imported_afresh(name, monkeypatch):
    """Import a second copy of a module; the first one stays unchanged."""
    copy = importlib.util.spec_from_file_location(f"{name}_afresh", importlib.util.find_spec(name).origin)
    module = importlib.util.module_from_spec(copy)
    monkeypatch.setitem(sys.modules, copy.name, module)
    copy.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", sorted(LACKING))
def test_the_import_needs_none_of_it(name, windows, monkeypatch):
    assert imported_afresh(name, monkeypatch).__doc__


def test_workers_ignore_the_signals_that_there_are(windows, monkeypatch):
    module = imported_afresh("sftn_fast.data.torchvision_decoder", monkeypatch)
    assert module.SIGNALS == (signal.SIGINT, signal.SIGTERM)


def test_without_file_locks_a_folder_is_used_unlocked_and_a_notice_says_so(windows, monkeypatch, tmp_path, capsys):
    exclusive = imported_afresh("sftn_fast.data.files", monkeypatch).exclusive
    other = tmp_path / ".unfinished-of-another-run"  # it may still be running
    other.mkdir()
    for _ in range(2):
        with exclusive(tmp_path) as scratch:
            (scratch / "half").write_text("written")
        assert not scratch.exists() and other.is_dir()
    warning = capsys.readouterr().err
    assert warning.startswith(f"warning: {tmp_path} can't be locked (")
    assert warning.count("\n") == 1


def test_a_regular_file_is_read_without_the_flag_for_pipes(windows, monkeypatch, tmp_path):
    (tmp_path / "a").write_bytes(b"content")
    with imported_afresh("sftn_fast.data.regular_files", monkeypatch).open_regular(tmp_path / "a") as file:
        assert file.read() == b"content"


def test_cores_and_memory_are_guessed(windows, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    module = imported_afresh("sftn_fast.data.resources", monkeypatch)
    assert module.cores() == 3 and module.memory() is None
