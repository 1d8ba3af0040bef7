"""Tables and sentences fit the terminal, and lose no cell."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sftn_fast import report
from sftn_fast.report.terminal import bullets, text_table

CELLS = [["", *(f"column {number}" for number in range(9))], *([f"row {i}", *["12.34 ± 5.67"] * 9] for i in range(4))]


@pytest.mark.parametrize("width", [40, 80, 100, 300])
def test_a_wide_table_is_cut_between_columns(width: int) -> None:
    text = text_table(CELLS, width)
    assert max(map(len, text.splitlines())) <= width
    assert text.count("12.34 ± 5.67") == 36
    for part in text.split("\n\n"):
        assert [line.split("|")[1].strip() for line in part.splitlines()[2:]] == [f"row {i}" for i in range(4)]


def test_without_a_width_nothing_is_cut() -> None:
    assert len(text_table(CELLS, None).splitlines()) == 6


def test_a_cell_too_wide_loses_its_end() -> None:
    text = text_table([["", "figure"], ["a" * 100, "1"]], 40)
    assert max(map(len, text.splitlines())) <= 40 and "aaa…" in text


def test_sentences_break_between_words() -> None:
    text = bullets(["one two three " * 10, "short"], 40)
    assert max(map(len, text.splitlines())) <= 40
    assert re.sub(r"\s+", " ", text).count("one two three") == 10 and text.endswith("\n- short")


def test_control_characters_do_not_reach_the_terminal() -> None:
    assert "\x1b" not in text_table([["a"], ["\x1b[31mred"]], 80) + bullets(["\x1b[2J\rgone"], 80)


def test_the_report_of_many_methods_fits(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert report.main([str(folder)]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert max(len(line) for line in shown if not line.startswith(("report: ", "page: ", "plot: "))) <= 80
    assert sum("+2.00 ± 1.00" in line for line in shown) == 1
