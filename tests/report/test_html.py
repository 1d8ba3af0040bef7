"""The page of a report takes text for text."""

from __future__ import annotations

from pathlib import Path

from sftn_fast.report.html import page

HOSTILE = "<script>alert('x')</script>\"&"


def test_text_is_shown_as_text(tmp_path: Path) -> None:
    picture = tmp_path / "picture.png"
    picture.write_bytes(b"any")
    content = page(
        title=HOSTILE,
        subtitle=HOSTILE,
        tables=[(HOSTILE, [[HOSTILE], [HOSTILE]], [HOSTILE])],
        pictures=[(HOSTILE, picture)],
        rows=[],
        costs=[[HOSTILE]],
        settings=HOSTILE,
    )
    assert "<script" not in content
    assert content.count("&lt;script&gt;") == 11
