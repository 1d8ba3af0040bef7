"""Lines on stdout beside the progress bar, and a log that can't be written."""

from __future__ import annotations

import contextlib
import io
import json
import os

import pytest

from sftn_fast.engine.run_log import RunLog
from sftn_fast.utils.progress import ProgressBar

from .faults import largest_file


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])
    monkeypatch.setenv("TERM", "xterm")
    return now


def test_the_bar_makes_room_for_lines(tmp_path, clock, capsys):
    terminal = Terminal()
    with RunLog(tmp_path, epochs=2, bar=ProgressBar(10, stream=terminal)) as log:
        for step in (1, 2):
            clock[0] += 1
            log.progress(step, 0)
        assert "epoch 1/2:  20%|" in terminal.getvalue()
        log.say("a line")
        assert terminal.getvalue().endswith(" \r")
    assert capsys.readouterr().out == "a line\n"


def test_the_line_of_an_epoch_says_what_remains_also_where_there_is_no_terminal(tmp_path, clock, capsys):
    row = {"epoch": 3, "step": 30, "lr": 0.1, "test_top1": 50.0, "seconds": 2.0}
    with RunLog(tmp_path, epochs=8, bar=ProgressBar(80, start=20, stream=io.StringIO())) as log:
        clock[0] += 25
        log.epoch([row])
        log.epoch([row | {"epoch": 8, "step": 80}])
    first, last = capsys.readouterr().out.splitlines()
    assert first == "epoch 3/8  done  test_top1 50  2.0 s, about 2 min left"  # 50 steps at 2.5 s
    assert last == "epoch 8/8  done  test_top1 50  2.0 s"


RECORD = {"epoch": 1, "step": 5, "lr": 0.1, "total": 1.0, "images_per_second": 1.0, "data_wait": 0.0, "seconds": 1.0}


def test_on_a_full_disk_lines_are_lost_whole_and_training_goes_on(tmp_path, caplog, capsys):
    with RunLog(tmp_path, epochs=2) as log:
        log.train(RECORD)
        with largest_file(log.offset + 20):
            log.train({**RECORD, "step": 6})
            log.train({**RECORD, "step": 7})
            log.epoch([{**RECORD, "note": "x" * 1000}])
        log.train({**RECORD, "step": 8})
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [5, 8]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]
    assert caplog.text.count("training continues") == 1


def test_a_stdout_that_is_full_or_closed_stops_nothing(tmp_path, caplog, monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as closed, open("/dev/full", "w") as full, RunLog(tmp_path, epochs=2) as log:  # noqa: PTH123
        for number, stdout in enumerate((closed, full)):
            monkeypatch.setattr("sys.stdout", stdout)
            log.train({**RECORD, "step": number})
            with contextlib.suppress(OSError):
                stdout.close()  # else it fails again at exit
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [0, 1]
    assert caplog.text.count("training continues") == 1


@pytest.mark.parametrize(("offset", "left"), [(0, 0), (10, 10)])
def test_what_a_checkpoint_does_not_know_of_goes(tmp_path, offset, left):
    with RunLog(tmp_path, epochs=2) as log:
        log.train(RECORD)
    with RunLog(tmp_path, epochs=2, offset=offset) as log:
        assert log.offset == left


def test_a_log_that_was_cut_short_says_so(tmp_path, caplog):
    with RunLog(tmp_path, epochs=2) as log:
        log.train(RECORD)
        log.train(RECORD)
        size = log.offset
    os.truncate(tmp_path / "metrics.jsonl", size - 10)
    with RunLog(tmp_path, epochs=2, offset=size) as log:
        log.train(RECORD)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["kind"] for line in lines] == ["train", "cut", "train"]
    assert lines[1] == {"kind": "cut", "bytes": size - 10, "expected": size}
    assert "metrics.jsonl was cut short" in caplog.text


@pytest.mark.parametrize("kind", ["link", "dangling link", "second name", "pipe", "folder"])
def test_a_log_is_not_written_elsewhere(tmp_path, caplog, kind):
    other, path = tmp_path / "other", tmp_path / "run" / "metrics.jsonl"
    path.parent.mkdir()
    if kind != "dangling link":
        other.write_text("precious\n")
    match kind:
        case "second name":
            path.hardlink_to(other)
        case "pipe":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
        case _:
            path.symlink_to(other)
    with RunLog(path.parent, epochs=2, offset=9) as log:
        log.train(RECORD)
        assert log.offset > 9  # a later resume cuts nothing that was there
    assert ("precious\n" if other.exists() else "") == (other.read_text() if other.exists() else "")
    assert other.exists() == (kind != "dangling link")
    assert ("metrics can't be written" in caplog.text) == (kind != "second name")


def test_a_quiet_log_writes_nothing(tmp_path, capsys):
    with RunLog(tmp_path, epochs=2, quiet=True) as log:
        log.train(RECORD)
        log.epoch([RECORD])
        assert log.offset == 0
    assert list(tmp_path.iterdir()) == [] and capsys.readouterr().out == ""


def test_an_epoch_line_of_many_terms_fits_the_terminal(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    row = {"epoch": 3, "step": 30, "lr": 0.1, "train_total": 0.123456, "val_top1": 90.1234, "val_top5": 99.1234}
    row |= {"val_ce": 0.123456, "test_top1": 89.1234, "test_top5": 98.1234, "test_ce": 0.654321, "seconds": 123.4}
    with RunLog(tmp_path, epochs=240) as log:
        log.epoch([row])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and all(len(line) <= 80 for line in lines)
    assert lines[0].startswith("epoch 3/240  done") and "test_ce 0.6543" in lines[1]
