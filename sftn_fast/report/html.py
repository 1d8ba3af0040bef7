"""The report as one HTML file that needs nothing else: pictures and script inside, light and dark.

Without its script the page shows the same, but its tables can't be sorted.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from sftn_fast.experiment.labels import label
from sftn_fast.report.glossary import define
from sftn_fast.report.results import AGREEMENT, BEST, CALIBRATION, CKA, COST, KL, SECONDS, SPEED, TOP1, Column, Row
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
th { font-weight: 600; white-space: normal; vertical-align: bottom; min-width: 3.2rem; }
th:first-child, td:first-child { text-align: left; }
tbody tr:nth-child(even) { background: var(--stripe); }
tfoot td { font-weight: 600; }
th button { all: unset; cursor: pointer; }
th button:focus-visible { outline: 2px solid; outline-offset: 2px; }
th[aria-sort=ascending] button::after { content: " \\25B2"; }
th[aria-sort=descending] button::after { content: " \\25BC"; }
details { margin: .5rem 0; font-size: .86rem; } summary { cursor: pointer; color: var(--soft); }
dl { margin: .5rem 0; } dt { font-weight: 600; } dd { margin: 0 0 .4rem 1rem; max-width: 46rem; }
img { max-width: 100%; background: #fff; border-radius: 6px; padding: 6px; box-sizing: border-box; }
pre { background: var(--stripe); padding: .8rem; overflow-x: auto; font-size: .82rem; }
"""

# A column whose cells begin with a number is sorted by it, others as text; dashes stay last. A second click turns it.
SCRIPT = """
for (const table of document.querySelectorAll("table")) {
  const body = table.tBodies[0], heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.append(...head.childNodes);
    button.title = "sort";
    head.append(button);
    button.addEventListener("click", () => {
      const falling = head.getAttribute("aria-sort") === "ascending";
      const text = row => row.cells[column].textContent.trim();
      const number = value => parseFloat(value.replace(/^[<\\s]+/, "").replace(/,(?=\\d{3})/g, ""));
      const rows = [...body.rows], known = rows.filter(row => text(row) && text(row) !== "-");
      const dated = known.some(row => /^\\d{4}-\\d\\d-/.test(text(row)));
      const numeric = !dated && known.every(row => /^[<\\s]*[-+]?\\d/.test(text(row)));
      known.sort((a, b) => (falling ? -1 : 1) * (numeric ? number(text(a)) - number(text(b))
        : text(a).localeCompare(text(b), undefined, {numeric: true})));
      heads.forEach(other => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", falling ? "descending" : "ascending");
      body.append(...known, ...rows.filter(row => !known.includes(row)));
    });
  });
}
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
<script>{script}</script>
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
    parts += ["<h2>Time and cost</h2>", _table(costs, has_total=len(costs) > 1)]
    parts += ["<h2>Every run</h2>", _table(_runs(rows)), "<h2>Made with</h2>", _list(environments(rows))]
    if settings:
        parts.append(f"<h2>Configuration</h2>\n<pre>{escape(settings)}</pre>")
    body = "\n".join(filter(None, parts))
    return PAGE.format(title=escape(title), style=STYLE, script=SCRIPT, body=body)


def _table(cells: Cells, *, has_total: bool = False) -> str:
    """A table that can be sorted, but for the total in its last line, and what its headings mean."""
    head, *lines = cells
    total = [lines.pop()] if has_total else []
    columns = "".join(f"<th>{escape(_heading(cell))}</th>" for cell in head)
    foot = f"<tfoot>\n{_lines(total)}\n</tfoot>\n" if total else ""
    table = f"<table>\n<thead><tr>{columns}</tr></thead>\n<tbody>\n{_lines(lines)}\n</tbody>\n{foot}</table>"
    return f'<div class="wide">{table}</div>\n{_glossary(head)}'


def _lines(lines: Sequence[Sequence[str]]) -> str:
    return "\n".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in line) + "</tr>" for line in lines)


def _heading(text: str) -> str:
    """A heading with a capital; symbols of one letter stay as they are, and a column without one holds stages."""
    return text[:1].upper() + text[1:] if text[1:2].isalpha() else text or "Stage"


def _glossary(headings: Sequence[str]) -> str:
    meanings = define(headings)
    if not meanings:
        return ""
    terms = "\n".join(f"<dt>{escape(_heading(term))}</dt><dd>{escape(what)}</dd>" for term, what in meanings.items())
    return f"<details><summary>What the columns mean</summary>\n<dl>\n{terms}\n</dl></details>"


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
