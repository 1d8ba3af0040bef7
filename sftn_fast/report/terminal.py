"""Tables and sentences as text of a given width."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Sequence

from sftn_fast.utils.text import escape

Cells = list[list[str]]
"""A table: its headings, then the cells of each row."""


def terminal_width() -> int:
    """Return the columns of the terminal: ``COLUMNS`` if it is set, 80 without a terminal."""
    return shutil.get_terminal_size((80, 24)).columns


def grid(cells: Cells) -> str:
    """Return a Markdown table with aligned columns."""
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in cells
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def text_table(cells: Cells, width: int | None) -> str:
    """Return a table of at most ``width`` columns of text.

    A wider table is split between its columns, and each part repeats the first column. Cells that are still too wide
    are cut at the end. With ``width`` None the table is neither split nor cut.
    """
    cells = [[escape(cell) for cell in line] for line in cells]
    if width is None or _width(cells) <= width:
        return grid(cells)
    longest = max(8, (width - 7) // 2)
    cells = [[_shortened(cell, longest) for cell in line] for line in cells]
    parts: list[list[int]] = [[]]
    for column in range(1, len(cells[0])):
        if parts[-1] and _width(_choose(cells, [*parts[-1], column])) > width:
            parts.append([])
        parts[-1].append(column)
    return "\n\n".join(grid(_choose(cells, part)) for part in parts)


def bullets(sentences: Sequence[str], width: int | None) -> str:
    """Return the sentences as a bulleted list, wrapped between words at ``width``; not wrapped if that is None."""
    lines = [f"- {escape(sentence)}" for sentence in sentences]
    return "\n".join(lines if width is None else (_filled(line, width) for line in lines))


def _filled(line: str, width: int) -> str:
    return textwrap.fill(line, width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def _width(cells: Cells) -> int:
    return sum(max(len(line[i]) for line in cells) + 3 for i in range(len(cells[0]))) + 1


def _choose(cells: Cells, columns: Sequence[int]) -> Cells:
    return [[line[0], *(line[column] for column in columns)] for line in cells]


def _shortened(cell: str, longest: int) -> str:
    return cell if len(cell) <= longest else cell[: longest - 1] + "…"
