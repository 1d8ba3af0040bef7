"""The progress of a task: a bar on a terminal, lines elsewhere, one rank of several, and what remains in words."""

from __future__ import annotations

import errno
import io
import threading

import pytest

from sftn_fast.utils.progress import INTERVAL, LINE_INTERVAL, ProgressBar, fold

COLUMNS = 100


class Terminal(io.StringIO):
    encoding = "utf-8"  # type: ignore[assignment]

    def isatty(self) -> bool:
        return True

    @property
    def shown(self) -> str:
        """What the last line shows: each carriage return starts it again."""
        line = ""
        for text in self.getvalue().split("\r"):
            line = text + line[len(text) :]
        return line.rstrip()


class LostTerminal(Terminal):
    def write(self, text: str) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])
    monkeypatch.setenv("COLUMNS", str(COLUMNS))
    monkeypatch.setenv("LINES", "24")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("RANK", raising=False)
    return now


def test_the_bar_shows_position_rate_and_time_left(clock: list[float]) -> None:
    terminal = Terminal()
    with ProgressBar(1000, start=200, stream=terminal) as bar:
        bar.update(200, "epoch 1/4")
        clock[0] += 10
        bar.update(300, "epoch 1/4")
        shown = terminal.shown
        assert shown.startswith("epoch 1/4:  30%|") and shown.endswith("| 300/1000 [00:10<01:10, 10.00 steps/s]")
        assert len(shown) <= COLUMNS and "\n" not in terminal.getvalue()
        assert bar.eta(300) == pytest.approx(70)
        clock[0] += 10
        bar.update(400, "epoch 2/4")
        assert terminal.shown.startswith("epoch 2/4:  40%|")
    assert terminal.shown == ""


def test_a_bar_that_goes_back_shows_it(clock: list[float]) -> None:
    terminal = Terminal()
    bar = ProgressBar(100, stream=terminal)
    for done in (0, 50, 20, 21):
        clock[0] += 1
        bar.update(done)
    assert "| 21/100 [" in terminal.shown


def test_the_bar_is_not_redrawn_at_every_step(clock: list[float]) -> None:
    terminal = Terminal()
    bar = ProgressBar(1000, stream=terminal)
    for step in range(1000):
        clock[0] += INTERVAL / 50
        bar.update(step, "epoch 1/1")
    assert 15 <= terminal.getvalue().count("\r") <= 20


def test_a_cleared_bar_leaves_an_empty_line_and_comes_back(clock: list[float]) -> None:
    terminal = Terminal()
    bar = ProgressBar(10, stream=terminal)
    bar.clear()  # before it was drawn
    for done in range(5):
        clock[0] += 1
        bar.update(done)
    assert terminal.shown
    bar.clear()
    assert terminal.shown == "" and terminal.getvalue().endswith("\r")
    clock[0] += 1
    bar.update(6)
    assert "| 6/10 [" in terminal.shown


def test_one_bar_after_the_other_takes_the_same_line(clock: list[float]) -> None:
    for _ in range(2):
        terminal = Terminal()
        with pytest.raises(KeyboardInterrupt), ProgressBar(10, stream=terminal) as bar:
            for done in range(5):
                clock[0] += 1
                bar.update(done)
            raise KeyboardInterrupt
        assert "\n" not in terminal.getvalue() and terminal.shown == ""


@pytest.mark.parametrize(("pause", "is_shown"), [(LINE_INTERVAL / 20, False), (LINE_INTERVAL / 5, True)])
def test_only_a_long_task_shows_a_bar(clock: list[float], pause: float, is_shown: bool) -> None:
    terminal = Terminal()
    with ProgressBar(10, start=None, line_interval=LINE_INTERVAL, stream=terminal) as bar:
        for done in range(1, 11):
            clock[0] += pause
            bar.update(done)
    assert bool(terminal.getvalue()) == is_shown


def test_a_bar_starts_no_thread(clock: list[float]) -> None:
    before = threading.active_count()
    with ProgressBar(10, stream=Terminal()) as bar:
        bar.update(1)
        assert threading.active_count() == before


@pytest.mark.parametrize("line_interval", [None, 2.0])
def test_a_terminal_without_escape_codes_is_none(
    clock: list[float], monkeypatch: pytest.MonkeyPatch, line_interval: float | None
) -> None:
    monkeypatch.setenv("TERM", "dumb")
    terminal = Terminal()
    bar = ProgressBar(4, label="reading", unit="images", line_interval=line_interval, stream=terminal)
    clock[0] += 2
    bar.update(1)
    assert not bar.active
    assert terminal.getvalue() == ("" if line_interval is None else "reading: 1 of 4 images, about 6 s left\n")


def test_nothing_is_drawn_where_there_is_no_terminal(clock: list[float]) -> None:
    stream = io.StringIO()
    with ProgressBar(10, stream=stream) as bar:
        clock[0] += 1
        bar.update(1, "epoch 1/1")
        bar.clear()
    assert stream.getvalue() == ""


@pytest.mark.parametrize("stream_type", [Terminal, io.StringIO])
@pytest.mark.parametrize("rank", [0, 1])
def test_only_the_first_rank_shows_anything(
    clock: list[float], monkeypatch: pytest.MonkeyPatch, rank: int, stream_type: type[io.StringIO]
) -> None:
    monkeypatch.setenv("RANK", str(rank))
    stream = stream_type()
    bar = ProgressBar(10, line_interval=1.0, stream=stream)
    for done in range(5):
        clock[0] += 2
        bar.update(done)
    assert bool(stream.getvalue()) == (rank == 0)
    assert bar.eta(5) == pytest.approx(10)


def test_a_terminal_that_goes_away_ends_the_bar_only(clock: list[float]) -> None:
    bar = ProgressBar(10, stream=LostTerminal())
    assert bar.active
    for done in range(5):
        clock[0] += 1
        bar.update(done, "epoch 1/1")
    assert not bar.active
    bar.clear()
    bar.close()


def test_lines_elsewhere_say_what_remains(clock: list[float]) -> None:
    stream = io.StringIO()
    bar = ProgressBar(4000, start=None, label="reading", unit="images", line_interval=3.0, stream=stream)
    clock[0] += 60  # before the first one, which says nothing of the rate
    for done in range(0, 4001, 500):
        bar.update(done)
        clock[0] += 1
    assert bar.eta(0) is None
    assert stream.getvalue().splitlines() == [
        "reading: 500 of 4,000 images, about 7 s left",
        "reading: 2,000 of 4,000 images, about 4 s left",
        "reading: 3,500 of 4,000 images, about 1 s left",
    ]


def test_lines_appear_only_when_it_takes_long(capsys: pytest.CaptureFixture[str]) -> None:
    for interval in (0.0, 60.0):
        bar = ProgressBar(2000, start=None, label="checking", unit="images", line_interval=interval)
        for done in (0, 1000, 2000):
            bar.update(done)
    first, last = capsys.readouterr().err.splitlines()
    assert first.startswith("checking: 1,000 of 2,000 images, about ") and first.endswith(" left")
    assert last == "checking: 2,000 of 2,000 images"


@pytest.mark.parametrize("width", [40, 80, 132])
def test_a_long_line_breaks_between_its_items(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    items = ["epoch 150/240", "step 117000", *(f"term_{number} 0.1234" for number in range(9)), "733 images/s"]
    lines = fold("  ".join(items), indent=4).split("\n")
    assert all(len(line) <= width for line in lines)
    assert all(line.startswith("    ") for line in lines[1:])
    assert [item for line in lines for item in line.strip().split("  ")] == items
