"""The check of image files, as a command and as it is used by the sources."""

from __future__ import annotations

import multiprocessing
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("PIL.Image")
import pictures

from sftn_fast.config import ConfigError
from sftn_fast.data import verify as module
from sftn_fast.data.skip_list import read_skip_list
from sftn_fast.utils.progress import ProgressBar


def run(*argv):
    command = [sys.executable, "-m", "sftn_fast.data.verify", *map(str, argv)]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.returncode, done.stdout


def crash(path, white):
    os.kill(os.getpid(), signal.SIGKILL)


def test_what_is_found_is_listed_and_then_left_out(tmp_path, capsys):
    def in_this_process(*argv):
        return module.main([*map(str, argv)]), capsys.readouterr().out

    root = tmp_path / "with a space ü"
    for i in range(2 * module.CHUNK):
        pictures.write(root / "train" / "cat" / f"{i:03}.png")
    bad = [root / "train" / "cat" / f"bad {i}.jpg" for i in range(len(pictures.FAULTS))]
    for path, kind in zip(bad, pictures.FAULTS, strict=True):
        pictures.damaged(path, kind)
    pictures.damaged(root / ".hidden" / "bad.jpg", "empty")
    for check in (in_this_process, run):  # the second time with the list there
        code, printed = check(root, "--workers", 2)
        assert code == 1
        *lines, summary = printed.splitlines()
        names = [line.partition(": ")[0] for line in lines]
        assert names == sorted(path.relative_to(root).as_posix() for path in bad)
        assert summary == f"74 images, 10 can't be decoded; they are listed in {root / 'skip.txt'}"
        assert (root / "skip.txt").read_text() == "".join(f"{name}\n" for name in names)
        assert read_skip_list(root) == set(bad)

    for path in bad:
        path.unlink()
    assert in_this_process(root) == (0, "64 images, 0 can't be decoded\n")
    assert not (root / "skip.txt").exists()


@pytest.mark.parametrize("argv", [[], ["--workers", "0", "."], ["nowhere"], ["--wrong"], ["empty"], ["file"]])
def test_usage(argv, tmp_path, monkeypatch, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("no folder")
    monkeypatch.chdir(tmp_path)
    try:
        code = module.main(argv)
    except SystemExit as left:
        code = left.code
    assert code == 2
    assert "error: " in capsys.readouterr().err.splitlines()[-1]


def test_a_name_that_is_no_utf8(tmp_path, capfd):
    name = os.fsdecode(b"caf\xe9\xe2\x80\xa8.png")  # with a Unicode line separator
    pictures.damaged(tmp_path / "a.png", "empty").rename(tmp_path / name)
    assert module.main([str(tmp_path)]) == 1
    assert r"caf\xe9" in capfd.readouterr().out
    assert read_skip_list(tmp_path) == {tmp_path / name}


def test_a_process_that_dies_is_an_error_and_no_skip_list(tmp_path, monkeypatch, capsys):
    pictures.write(tmp_path / "a.png")
    monkeypatch.setattr(module, "find_fault", crash)
    assert module.main([str(tmp_path), "--workers", "1"]) == 2
    assert "a process died while decoding" in capsys.readouterr().err
    assert not (tmp_path / "skip.txt").exists()


def test_a_check_that_is_stopped_leaves_the_older_list(tmp_path, monkeypatch, capsys):
    def stop(*_):
        raise KeyboardInterrupt

    for name in ("a.png", "b.png"):
        pictures.damaged(tmp_path / name, "empty")
    (tmp_path / "skip.txt").write_text("a.png\n")
    monkeypatch.setattr(ProgressBar, "update", stop)
    assert module.main([str(tmp_path), "--workers", "1"]) == 130
    assert "stopped by SIGINT" in capsys.readouterr().err
    assert (tmp_path / "skip.txt").read_text() == "a.png\n"
    assert multiprocessing.active_children() == []


def handler(_, white):
    return str(signal.getsignal(signal.SIGINT))


BUSY = """
import multiprocessing, sys
from multiprocessing import forkserver, util
from sftn_fast.data import verify
def update(self, done):
    print(*(c.pid for c in multiprocessing.active_children()), forkserver._forkserver._forkserver_pid, flush=True)
    print(util.get_temp_dir(), flush=True)
    sys.stdin.read()
verify.ProgressBar.update = update
verify.main([sys.argv[1], "--workers", "2"])
"""


def test_processes_end_with_a_check_that_is_killed(tmp_path):
    for i in range(3 * module.CHUNK):
        pictures.write(tmp_path / f"{i}.png")
    command = [sys.executable, "-c", BUSY, str(tmp_path)]
    parent = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    children = [os.pidfd_open(int(pid)) for pid in parent.stdout.readline().split()]
    scratch = Path(parent.stdout.readline().strip())
    assert len(children) == 3 and scratch.is_dir()  # two, and the server that they were forked from
    parent.kill()
    gone = [bool(select.select([child], [], [], 30)[0]) for child in children]
    for child, is_gone in zip(children, gone, strict=True):
        if not is_gone:
            signal.pidfd_send_signal(child, signal.SIGKILL)
        os.close(child)
    parent.communicate()
    assert all(gone), "a process outlived the check"
    assert not scratch.exists()


def test_ctrl_c_is_answered_by_one_process(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "find_fault", handler)
    assert list(module._faults([tmp_path], 1)) == [str(signal.SIG_IGN)]


def test_a_list_that_can_not_be_written_is_explained(tmp_path):
    (tmp_path / "skip.txt" / "held").mkdir(parents=True)  # an empty folder would give way
    with pytest.raises(ConfigError, match=r"skip.txt can't be written"):
        module.write_skip_list(tmp_path, {tmp_path / "a.png": "empty"})
