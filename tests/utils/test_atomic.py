"""Files that are whole or not there, never written through a link, and what killed processes leave of them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sftn_fast.config import ConfigError
from sftn_fast.engine import RunFolder
from sftn_fast.utils import atomic, run_files

CALLS = ("open", "write", "fsync", "replace", "rename", "mkdir", "unlink", "rmdir", "link")


def pair(folder: Path) -> tuple[bytes, ...] | None:
    return tuple((folder / name).read_bytes() for name in ("a", "b")) if folder.exists() else None


@pytest.mark.parametrize("at_once", [True, False])
def test_nobody_sees_one_new_and_one_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: bool) -> None:
    folder, seen = tmp_path / "pair", set()
    atomic.replace_files(folder, {"a": b"old", "b": b"old"})
    (folder / "other").write_text("kept")
    (folder / "inner").mkdir()
    (folder / "inner" / "other").write_text("kept too")
    for name in CALLS:
        original = getattr(os, name)

        def look(*arguments, original=original, **options):
            seen.add(pair(folder))
            return original(*arguments, **options)

        monkeypatch.setattr(os, name, look)
    if not at_once:
        monkeypatch.setattr(atomic.ctypes, "CDLL", lambda *_, **__: object())
    atomic.replace_files(folder, {"a": b"new", "b": b"new"})
    monkeypatch.undo()
    assert pair(folder) == (b"new", b"new")
    assert seen <= {(b"old", b"old"), (b"new", b"new"), *([] if at_once else [None])}
    assert (folder / "other").read_text() == "kept" and (folder / "inner" / "other").read_text() == "kept too"
    assert [path.name for path in tmp_path.iterdir()] == ["pair"]


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("write", ["a file", "a pair"])
def test_what_fails_leaves_the_old_and_no_temporary_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, write: str
) -> None:
    original = getattr(os, call)

    def fail(*arguments, **options):
        if call == "open" and not arguments[1] & os.O_CREAT:  # without which nothing can be cleaned up
            return original(*arguments, **options)
        raise OSError(28, "No space left on device")

    atomic.replace_files(tmp_path / "pair", {"a": b"old", "b": b"old"})
    atomic.write_atomically(tmp_path / "file", "old")
    with monkeypatch.context() as patch:
        if call not in ("unlink", "rmdir"):  # without these nothing can be cleaned up
            patch.setattr(os, call, fail)
        try:
            if write == "a file":
                atomic.write_atomically(tmp_path / "file", "new")
            else:
                atomic.replace_files(tmp_path / "pair", {"a": b"new", "b": b"new"})
        except OSError as error:
            assert "No space left" in str(error)
    assert pair(tmp_path / "pair") in ((b"old", b"old"), (b"new", b"new"))
    assert (tmp_path / "file").read_text() in ("old", "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "pair"]


def test_links_are_replaced_and_not_followed(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("precious")
    link.symlink_to(target)
    planted = tmp_path / f".link.{os.getpid()}.tmp"
    planted.symlink_to(target)
    atomic.write_atomically(link, "new")
    assert target.read_text() == "precious" and link.read_text() == "new" and not link.is_symlink()
    assert not planted.is_symlink()


@pytest.mark.parametrize("kind", ["link", "dangling", "pipe", "folder"])
def test_a_lock_is_a_file_of_its_own(tmp_path: Path, kind: str) -> None:
    target, lock = tmp_path / "target", tmp_path / "run" / ".lock"
    lock.parent.mkdir()
    if kind == "pipe":
        os.mkfifo(lock)
    elif kind == "folder":
        lock.mkdir()
    else:
        lock.symlink_to(target)
        if kind == "link":
            target.write_text("precious")
    with pytest.raises(ConfigError, match=r"\.lock|Is a directory"):
        RunFolder(lock.parent).__enter__()
    assert target.exists() == (kind == "link") and (kind != "link" or target.read_text() == "precious")


def test_a_lock_with_a_second_name_is_not_written_to(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text("precious")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").hardlink_to(tmp_path / "elsewhere")
    with RunFolder(tmp_path / "run"):
        assert (tmp_path / "elsewhere").read_text() == "precious"


INSIDE = (
    "seed0",
    "seed0/teacher",
    "seed0/teacher/checkpoints",
    "seed0/teacher-logits",
    "student",
    "seed0/teacher/anchors",
)
"""Folders that a run makes."""
NAMES = ("config.yaml", "report.md", "report.html", "report.png", "curves.png", "results.csv", "resumed-from")
NAMES += tuple(f"seed0/teacher/{name}" for name in (run_files.RESULT, *run_files.NETWORK, *run_files.LOGS, "seconds"))
NAMES += tuple(f"seed0/teacher/{part}/model.safetensors" for part in ("anchors/epoch0001", "peer1"))
NAMES += ("seed0/teacher/init-ab/metrics.jsonl", "seed0/teacher-logits/teacher/epoch0001.safetensors")
NAMES += ("student/config.json", "seed0/teacher/checkpoints/step_000000002/state.pt", ".tmp_resume")


@pytest.mark.parametrize("name", [*INSIDE, *NAMES])
@pytest.mark.parametrize("to", ["a file", "a folder", "nothing"])
def test_a_link_out_of_the_folder_is_refused_by_name(tmp_path: Path, name: str, to: str) -> None:
    outside, link = tmp_path / "outside", tmp_path / "run" / name
    link.parent.mkdir(parents=True)
    if to == "a file":
        outside.write_text("precious")
    elif to == "a folder":
        outside.mkdir()
    link.symlink_to(outside)
    with pytest.raises(ConfigError, match=f"{name} is a link"):
        RunFolder(tmp_path / "run").__enter__()
    assert [path.name for path in tmp_path.iterdir() if path.name != "run"] == ["outside"] * (to != "nothing")
    assert to != "a file" or outside.read_text() == "precious"
    assert to != "a folder" or list(outside.iterdir()) == []


def test_a_folder_given_by_a_link_is_used_and_other_links_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "disk")
    (tmp_path / "disk" / "images").symlink_to("/")
    with RunFolder(tmp_path / "run") as folder:
        assert folder == tmp_path / "disk"


def test_what_killed_runs_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    leftovers = [".report.md.123.tmp", ".student.77.tmp/model.safetensors", "seed0/teacher/.result.json.9.tmp"]
    leftovers += ["seed0/teacher/checkpoints/.tmp_000000005/state.pt", "student/.config.json.1.tmp"]
    leftovers += ["seed0/teacher-logits/teacher/.epoch0001.safetensors.4.tmp", "seed0/teacher/.tmp_summary.csv"]
    kept = ["notes.tmp", ".hidden", "mine/.a.1.tmp", "seed0.bak/.a.1.tmp", "seed0/teacher/.x.tmp", "report.1.tmp"]
    for name in (*leftovers, *kept):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    with RunFolder(tmp_path), pytest.raises(ConfigError, match="in use"):
        (tmp_path / leftovers[0]).write_text("x")
        RunFolder(tmp_path).__enter__()
    assert (tmp_path / leftovers[0]).exists()  # a run that is refused removes nothing
    with RunFolder(tmp_path):
        pass
    assert not any((tmp_path / name).exists() for name in leftovers)
    assert all((tmp_path / name).exists() for name in kept)
