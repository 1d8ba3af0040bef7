"""The check of image files, as a command and as a function."""

from __future__ import annotations

import multiprocessing
import os
import signal

import pytest

pytest.importorskip("PIL.Image")
import pictures

from sftn_fast.config import ConfigError
from sftn_fast.data import verify as module
from sftn_fast.data.skip_list import read_skip_list
from sftn_fast.utils.progress import ProgressBar


def crash(path, white, **_):
    os.kill(os.getpid(), signal.SIGKILL)


def test_what_is_found_is_listed_and_then_left_out(tmp_path, capsys):
    def check(*argv):
        return module.main([*map(str, argv)]), capsys.readouterr().out

    root = tmp_path / "with a space ü"
    for i in range(2 * module.CHUNK):
        pictures.write(root / "train" / "cat" / f"{i:03}.png")
    bad = [root / "train" / "cat" / f"bad {i}.jpg" for i in range(len(pictures.FAULTS))]
    for path, kind in zip(bad, pictures.FAULTS, strict=True):
        pictures.damaged(path, kind)
    pictures.damaged(root / ".hidden" / "bad.jpg", "empty")
    for _ in range(2):  # the second time, the list exists
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
    assert check(root) == (0, "64 images, 0 can't be decoded\n")
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


@pytest.mark.parametrize(
    ("root", "message"),
    [
        ("~nosuchuser/images", "ROOT must be a path, got '~nosuchuser/images', which names an unknown user"),
        ("a\0b", "ROOT must be a path without the character U+0000, got 'a\\x00b'"),
        (" ", "ROOT must be a path, got ' '"),
    ],
)
def test_a_root_that_is_no_path(root, message, capsys):
    assert module.main([root]) == 2
    assert capsys.readouterr().err == f"error: {message}\n"


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


def handler(_, white, **__):
    return str(signal.getsignal(signal.SIGINT))


def test_ctrl_c_is_answered_by_one_process(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "find_fault", handler)
    assert list(module._faults([tmp_path], 1)) == [str(signal.SIG_IGN)]


def test_a_list_that_can_not_be_written_is_explained(tmp_path):
    (tmp_path / "skip.txt" / "held").mkdir(parents=True)  # an empty folder would be replaced
    with pytest.raises(ConfigError, match=r"skip.txt can't be written"):
        module.write_skip_list(tmp_path, {tmp_path / "a.png": "empty"})
