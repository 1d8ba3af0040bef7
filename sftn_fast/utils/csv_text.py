"""Rows as CSV that every reader reads back: quoted where a name holds a comma, a quote or any end of a line."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence


def csv_text(rows: Iterable[Sequence[object]]) -> str:
    """Return ``rows`` as CSV with a line feed after each."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    quoting = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL)
    for row in rows:
        # Python quotes only the line end that it writes itself, but readers end a line at a carriage return too.
        has_return = any("\r" in cell for cell in row if isinstance(cell, str))
        (quoting if has_return else writer).writerow(row)
    return text.getvalue()
