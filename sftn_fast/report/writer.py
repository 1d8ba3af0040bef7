"""The files of a run's report: Markdown, HTML page, CSV table and plots."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from sftn_fast.experiment.best_epoch import chosen_by
from sftn_fast.experiment.class_accuracy import FILE
from sftn_fast.experiment.labels import label
from sftn_fast.experiment.settings import read_settings
from sftn_fast.report import by_class, curves, exported, figure, html, table
from sftn_fast.report.findings import findings
from sftn_fast.report.matrix import MethodLine, read_matrix
from sftn_fast.report.results import COST, Row, read_run
from sftn_fast.report.terminal import Cells, bullets, text_table
from sftn_fast.report.warnings import warnings
from sftn_fast.utils import run_files
from sftn_fast.utils.atomic import write_atomically
from sftn_fast.utils.text import printable

CSV_COLUMNS = (
    *("name", "method", "seed", "network", "parameters", "epochs", "top1_last"),
    *("top1_best", "best_epoch", "best_chosen_by", "top1_ema"),
    *("agreement", "agreement5", "kl", "cka", "calibration_error"),
    *("seconds", "images_per_second", "data_wait_share", "device_seconds"),
)

Classes = Mapping[str, Sequence[by_class.ClassAccuracy]]
"""Accuracy by class of each network, by the network's label."""


@dataclass(frozen=True)
class Content:
    """Everything that a report shows besides its plots."""

    rows: Sequence[Row]
    lines: Sequence[MethodLine]
    """The methods, for a run with several."""
    settings: dict[str, Any]
    cells: Cells
    """The main table."""
    sentences: Sequence[str]
    """The sentences below it."""
    findings: Sequence[str]
    """What the run shows, in plain words."""
    classes: Classes


def write(folder: Path, *, width: int | None = None) -> str:
    """Write ``report.md``, ``report.html``, ``results.csv`` and, if Matplotlib can be imported, the plots.

    Args:
        folder: A run's folder. The files are written into it.
        width: Columns of the returned text; None for no limit.

    Returns:
        The report as text, the paths of the files, and what the run shows.

    Raises:
        ConfigError: No training in ``folder`` has finished, or one of the files is a link that leads elsewhere.
        OSError: A file can't be written.
    """
    run_files.refuse_links(folder)
    content = _read(folder)
    write_atomically(folder / "results.csv", _csv(content.rows))
    pictures, where = draw(folder, content.rows, content.lines)
    write_atomically(folder / "report.html", _page(folder, content, pictures))
    write_atomically(folder / "report.md", _markdown(content, pictures))
    text = f"{text_table(content.cells, width)}\n\n{bullets(content.sentences, width)}\n"
    files = f"report: {folder / 'report.md'}\npage: {folder / 'report.html'}\n{where}\n"
    # Last, where somebody who waited for the run looks first.
    found = f"\nTop-1 on the test images:\n{bullets(content.findings, width)}\n" if content.findings else ""
    return f"{text}\n{files}{found}"


def draw(folder: Path, rows: Sequence[Row], lines: Sequence[MethodLine]) -> tuple[list[tuple[str, Path]], str]:
    """Draw the plots into ``folder``; return their titles and files, and a line that says where or why not."""
    results, by_epoch = folder / "report.png", folder / "curves.png"
    try:
        figure.plot(rows, lines, results)
        pictures = [("Results", results)]
        if curves.plot_curves(folder, rows, by_epoch):
            pictures.append(("Test accuracy by epoch, mean ± SD over the seeds (first epochs cut off)", by_epoch))
    except ImportError as error:
        return [], f"no plot: matplotlib can't be imported ({error}); pip install matplotlib"
    return pictures, f"plot: {results}"


def _read(folder: Path) -> Content:
    (rows, notes), settings = read_run(folder), read_settings(folder)
    lines = read_matrix(rows, settings)
    if lines:
        cells, sentences = table.matrix_table(lines), table.matrix_sentences(rows, lines)
    else:
        cells, sentences = (
            table.rows_table(rows),
            [*table.comparisons(rows), *exported.choice_sentences(_by_label(rows))],
        )
    classes, remarks = _read_classes(folder, rows)
    sentences += [*exported.average_sentences(rows), *exported.student_sentences(folder)]
    sentences += [*table.images_sentences(rows), *table.start_sentences(rows)]
    sentences += [*table.published_sentences(rows, lines, settings), table.cost_sentence(rows)]
    sentences = [*warnings(rows), *sentences, *remarks, *notes]
    return Content(rows, lines, settings, cells, sentences, findings(rows), classes)


def _read_classes(folder: Path, rows: Sequence[Row]) -> tuple[Classes, list[str]]:
    """Return the accuracy by class of each row that has it, and sentences about it."""
    networks: dict[str, list[by_class.ClassAccuracy]] = {}
    sentences: list[str] = []
    for row in rows:
        classes, problems = by_class.read(folder, row)
        sentences += problems
        if classes and all(len(classes) == len(others) for others in networks.values()):
            networks[label(row.name)] = classes
    if networks:
        name, classes = list(networks.items())[-1]
        sentence = by_class.hardest(name, classes)
        sentences += [sentence] if sentence else []
    return networks, sentences


def _markdown(content: Content, pictures: Sequence[tuple[str, Path]]) -> str:
    sentences = (f"- {table.markdown_text(sentence)}" for sentence in (*content.findings, *content.sentences))
    parts = [table.markdown(content.cells), "\n".join(sentences)]
    if content.classes:
        count = _class_count(content.classes)
        which = f", the {by_class.FEW} hardest of {count} classes" if count > by_class.FEW else ""
        cells = by_class.table(content.classes, by_class.FEW)
        parts += [f"Accuracy by class in percent{which}:", table.markdown(cells)]
    parts += [f"![{title}]({path.name})" for title, path in pictures]
    return "\n\n".join(parts) + "\n"


def _page(folder: Path, content: Content, pictures: Sequence[tuple[str, Path]]) -> str:
    import yaml

    settings = content.settings
    data = settings.get("data", {}).get("name")
    networks = [settings[key] for key in ("teacher", "student") if key in settings]
    name = printable(folder.resolve().name)
    return html.page(
        title=" to ".join(networks) + (f" on {data}" if data else "") or name,
        subtitle=f"{name}, reported {datetime.now().astimezone():%Y-%m-%d %H:%M %z}",
        tables=_page_tables(content),
        pictures=pictures,
        rows=content.rows,
        costs=table.costs_table(content.rows),
        settings=yaml.safe_dump(settings, sort_keys=False, allow_unicode=True) if settings else "",
    )


def _page_tables(content: Content) -> list[tuple[str, Cells, Sequence[str]]]:
    """Return heading, cells and sentences of each table with results."""
    sentences: Sequence[str] = [*content.findings, *content.sentences]
    tables = [("Methods" if content.lines else "Results", content.cells, sentences)]
    if content.lines:
        tables.append(
            ("All networks", table.rows_table(content.rows), exported.choice_sentences(_by_label(content.rows)))
        )
    if content.classes:
        count = _class_count(content.classes)
        note = f"The {by_class.PAGE} hardest of {count} classes; {FILE} in each training's folder has all of them"
        cells = by_class.table(content.classes, by_class.PAGE)
        tables.append(("Accuracy by class", cells, [note] if count > by_class.PAGE else []))
    return tables


def _by_label(rows: Sequence[Row]) -> dict[str, list[Row]]:
    return {label(row.name): [row] for row in rows}


def _class_count(classes: Classes) -> int:
    return len(next(iter(classes.values())))


def _csv(rows: Sequence[Row]) -> str:
    """Return ``results.csv``: a line for each training."""
    text = io.StringIO()
    writer = csv.DictWriter(text, CSV_COLUMNS, extrasaction="ignore")
    writer.writeheader()
    for row in rows:
        for result in row.results:
            derived = {
                "method": row.method,
                "top1_last": result["last"]["top1"],
                "top1_best": result["best"]["top1"],
                "best_epoch": result["best"]["epoch"],
                "best_chosen_by": chosen_by(result) or "",
                "top1_ema": result.get("ema", {}).get("top1", ""),
                "device_seconds": COST.value(result),
            }
            writer.writerow({**result, **derived})
    return text.getvalue()
