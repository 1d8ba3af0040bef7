"""The report as one HTML file that needs nothing else: pictures inside, no script, light and dark."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from sftn_fast.report.results import (
    AGREEMENT,
    BEST,
    CALIBRATION,
    CKA,
    COST,
    KL,
    SECONDS,
    SPEED,
    TOP1,
    Column,
    Row,
    label,
)
from sftn_fast.report.table import Cells

STYLE = """
:root { color-scheme: light dark; --text: #1d2127; --soft: #5f6570; --line: #d5d8dd; --back: #fff; --stripe: #f5f6f8; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e4e6ea; --soft: #a0a6b0; --line: #3a3f47; --back: #16181c; --stripe: #1e2126; }
}
body { font: 15px/1.5 system-ui, sans-serif; color: var(--text); background: var(--back);
       max-width: 76rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: 0; } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
.soft { color: var(--soft); margin-top: .2rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .86rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
th { font-weight: 600; white-space: normal; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; }
tbody tr:nth-child(even) { background: var(--stripe); }
img { max-width: 100%; background: #fff; border-radius: 6px; padding: 6px; box-sizing: border-box; }
pre { background: var(--stripe); padding: .8rem; overflow-x: auto; font-size: .82rem; }
"""

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
{body}
</body>
</html>
"""

PER_RUN: tuple[Column, ...] = (TOP1, BEST, AGREEMENT, KL, CKA, CALIBRATION, SECONDS, SPEED, COST)


def page(
    *,
    title: str,
    subtitle: str,
    tables: Sequence[tuple[str, Cells, Sequence[str]]],
    pictures: Iterable[tuple[str, Path]],
    rows: Sequence[Row],
    costs: Cells,
    settings: str,
) -> str:
    """The whole file.

    Args:
        title, subtitle: What was run; when the report was made.
        tables: Heading, cells, and the sentences under them.
        pictures: Heading and PNG file of each.
        rows: The stages, for a line a run.
        costs: The table of times.
        settings: The run's configuration as YAML; empty if it is not known.
    """
    parts = [f"<h1>{escape(title)}</h1>", f'<p class="soft">{escape(subtitle)}</p>']
    for heading, cells, sentences in tables:
        parts += [f"<h2>{escape(heading)}</h2>", _table(cells), _list(sentences)]
    parts += [_picture(heading, path) for heading, path in pictures]
    parts += ["<h2>Time and cost</h2>", _table(costs)]
    parts += ["<h2>Every run</h2>", _table(_runs(rows)), "<h2>Made with</h2>", _list(environments(rows))]
    if settings:
        parts.append(f"<h2>Configuration</h2>\n<pre>{escape(settings)}</pre>")
    body = "\n".join(filter(None, parts))
    return PAGE.format(title=escape(title), style=STYLE, body=body)


def _table(cells: Cells) -> str:
    head, *lines = cells
    columns = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "\n".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in line) + "</tr>" for line in lines)
    return f'<div class="wide"><table>\n<thead><tr>{columns}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table></div>'


def _list(sentences: Sequence[str]) -> str:
    return "<ul>\n" + "\n".join(f"<li>{escape(each)}</li>" for each in sentences) + "\n</ul>" if sentences else ""


def _picture(heading: str, path: Path) -> str:
    content = base64.b64encode(path.read_bytes()).decode()
    return f'<h2>{escape(heading)}</h2>\n<img alt="{escape(heading)}" src="data:image/png;base64,{content}">'


def _runs(rows: Sequence[Row]) -> Cells:
    headings = [column.heading for column in PER_RUN]
    cells = [["run", "seed", "network", "parameters", "epochs", *headings, "finished"]]
    for row in rows:
        for result in row.results:
            figures = [_figure(column, result) for column in PER_RUN]
            about = [str(result["seed"]), row.network, f"{result['parameters']:,}", str(result["epochs"])]
            finished = result.get("environment", {}).get("finished", "-")
            cells.append([label(row.name), *about, *figures, finished])
    return cells


def _figure(column: Column, result: Mapping[str, Any]) -> str:
    value = column.value(dict(result))
    return "-" if value is None else f"{value:.{column.digits}f}"


def environments(rows: Sequence[Row]) -> list[str]:
    """Versions and machine of the runs, each combination once."""
    found: dict[str, None] = {}
    for row in rows:
        for result in row.results:
            environment = {k: v for k, v in result.get("environment", {}).items() if k != "finished"}
            found[", ".join(f"{key} {value}" for key, value in environment.items()) or "not recorded"] = None
    return list(found)
