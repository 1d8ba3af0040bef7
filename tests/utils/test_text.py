"""Text from files, as it is shown."""

from __future__ import annotations

import pytest

from sftn_fast.utils.text import LONGEST, for_markdown, printable, printable_lines


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("größe 学生 kd=0.9", "größe 学生 kd=0.9"),
        ("a\x1b[2Jb", "a\\x1b[2Jb"),
        ("a\nb\tc\r", "a\\nb\\tc\\r"),
        ("\u202egpj.x", "\\u202egpj.x"),
        ("\x9b31m", "\\x9b31m"),
        (b"caf\xe9".decode(errors="surrogateescape"), "caf\\xe9"),
        ("\ud800", "\\ud800"),
        ("\u2066a\u2028b\u0085", "\\u2066a\\u2028b\\x85"),
        ("at 3.04\u202fPM\u00a0\u00ad\ue000", "at 3.04\u202fPM\u00a0\u00ad\ue000"),  # harmless, though not printable
        ("\U0001f469\u200d\U0001f467", "\U0001f469\u200d\U0001f467"),
    ],
)
def test_what_a_terminal_would_obey_is_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown
    printable(text).encode()


def test_what_is_long_is_cut_in_the_middle() -> None:
    shown = printable("begin" + 10_000 * "x" + "end")
    assert len(shown) <= LONGEST and shown.startswith("begin") and shown.endswith("end") and "..." in shown


def test_a_message_keeps_its_lines() -> None:
    assert printable_lines("a\x1b\nb") == "a\\x1b\nb"


def test_markdown_makes_nothing_of_it() -> None:
    assert for_markdown("<b> [a](b) ![d](e)") == "&lt;b> \\[a](b) !\\[d](e)"
