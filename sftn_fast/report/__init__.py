"""Tables, pictures and pages of finished runs: ``python -m sftn_fast.report FOLDER``, of several a comparison.

Everything is read from the ``result.json`` files below a run's folder, so a report can be made again, and of a run that
has finished only in part.
"""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from sftn_fast.config import ConfigError
from sftn_fast.experiment.class_counts import FILE
from sftn_fast.experiment.labels import LABELS, kind, label
from sftn_fast.experiment.settings import read_settings
from sftn_fast.report import by_class, figure, html, table
from sftn_fast.report.comparison import compare
from sftn_fast.report.matrix import MethodLine, read_matrix
from sftn_fast.report.results import COST, RESULT, Row, read_results, read_run
from sftn_fast.report.statistics import mean_and_deviation
from sftn_fast.report.table import comparisons, gain
from sftn_fast.report.terminal import bullets, terminal_width, text_table
from sftn_fast.report.warnings import warnings
from sftn_fast.utils import run_files
from sftn_fast.utils.atomic import describe, write_atomically
from sftn_fast.utils.text import printable, printable_lines

__all__ = [
    "LABELS",
    "RESULT",
    "Row",
    "by_class",
    "compare",
    "comparisons",
    "gain",
    "kind",
    "label",
    "main",
    "mean_and_deviation",
    "read_results",
    "terminal_width",
    "write",
]


def write(folder: Path, *, width: int | None = None) -> str:
    """Write ``report.md``, ``report.html``, ``results.csv`` and, if matplotlib works, the pictures into ``folder``.

    Returns the report as text of ``width`` columns, or as wide as it is, with the files' paths.
    """
    run_files.refuse_links(folder)
    (rows, notes), settings = read_run(folder), read_settings(folder)
    lines = read_matrix(rows, settings)
    if lines:
        heading, cells, sentences = "Methods", table.matrix_table(lines), table.matrix_sentences(rows, lines)
    else:
        heading, cells, sentences = "Results", table.rows_table(rows), comparisons(rows)
    sentences += [*table.published_sentences(rows, lines, settings), table.cost_sentence(rows)]
    classes, remarks = _read_classes(folder, rows)
    sentences = [*warnings(rows), *sentences, *remarks, *notes]
    _write_csv(rows, folder / "results.csv")
    pictures, where = _draw(folder, rows, lines)
    tables = [(heading, cells, sentences)]
    if lines:
        tables.append(("Every stage", table.rows_table(rows), []))
    if classes:
        shown = by_class.table(classes, by_class.PAGE)
        count = len(next(iter(classes.values())))
        left = [f"The {by_class.PAGE} hardest of {count} classes; {FILE} of each stage has all"]
        tables.append(("Accuracy by class", shown, left if count > by_class.PAGE else []))
    _write_page(folder, settings, rows, tables, pictures)
    parts = [table.markdown(cells), "\n".join(f"- {table.markdown_text(sentence)}" for sentence in sentences)]
    if classes:
        count = len(next(iter(classes.values())))
        which = f", the {by_class.FEW} hardest of {count} classes" if count > by_class.FEW else ""
        parts += [f"Accuracy by class in percent{which}:", table.markdown(by_class.table(classes, by_class.FEW))]
    parts += [f"![{title}]({path.name})" for title, path in pictures]
    write_atomically(folder / "report.md", "\n\n".join(parts) + "\n")
    text = f"{text_table(cells, width)}\n\n{bullets(sentences, width)}\n"
    return f"{text}\nreport: {folder / 'report.md'}\npage: {folder / 'report.html'}\n{where}\n"


def _read_classes(folder: Path, rows: Sequence[Row]) -> tuple[dict[str, list[by_class.ClassAccuracy]], list[str]]:
    """Accuracy by class of each stage that has it, by the stage's label, and sentences about it."""
    stages: dict[str, list[by_class.ClassAccuracy]] = {}
    sentences: list[str] = []
    for row in rows:
        classes, problems = by_class.read(folder, row)
        sentences += problems
        if classes and all(len(classes) == len(others) for others in stages.values()):
            stages[label(row.name)] = classes
    if stages:
        name, classes = list(stages.items())[-1]
        sentence = by_class.hardest(name, classes)
        sentences += [sentence] if sentence else []
    return stages, sentences


def _draw(folder: Path, rows: Sequence[Row], lines: Sequence[MethodLine]) -> tuple[list[tuple[str, Path]], str]:
    """The pictures with their titles, and a line that says where they are or why there are none."""
    results, curves = folder / "report.png", folder / "curves.png"
    try:
        figure.plot(rows, lines, results)
        pictures = [("Results in one picture", results)]
        if figure.plot_curves(folder, rows, curves):
            pictures.append(("Test accuracy by epoch: mean ± deviation over the seeds, steep beginning cut", curves))
    except ImportError as error:
        return [], f"no plot: matplotlib can't be imported ({error}); pip install matplotlib"
    return pictures, f"plot: {results}"


def _write_page(
    folder: Path,
    settings: dict[str, Any],
    rows: Sequence[Row],
    tables: list[tuple[str, table.Cells, list[str]]],
    pictures: list[tuple[str, Path]],
) -> None:
    import yaml

    data = settings.get("data", {}).get("name")
    networks = [settings[key] for key in ("teacher", "student") if key in settings]
    name = printable(folder.resolve().name)
    page = html.page(
        title=" to ".join(networks) + (f" on {data}" if data else "") or name,
        subtitle=f"{name}, reported {datetime.now().astimezone():%Y-%m-%d %H:%M %z}",
        tables=tables,
        pictures=pictures,
        rows=rows,
        costs=table.costs_table(rows),
        settings=yaml.safe_dump(settings, sort_keys=False, allow_unicode=True) if settings else "",
    )
    write_atomically(folder / "report.html", page)


def _write_csv(rows: Sequence[Row], path: Path) -> None:
    names = ["name", "method", "seed", "network", "parameters", "epochs", "top1_last", "top1_best", "best_epoch"]
    names += ["agreement", "agreement5", "kl", "cka", "calibration_error"]
    names += ["seconds", "images_per_second", "data_wait_share", "device_seconds"]
    text = io.StringIO()
    writer = csv.DictWriter(text, names, extrasaction="ignore")
    writer.writeheader()
    for row in rows:
        for result in row.results:
            derived = {
                "method": row.method,
                "top1_last": result["last"]["top1"],
                "top1_best": result["best"]["top1"],
                "best_epoch": result["best"]["epoch"],
                "device_seconds": COST.value(result),
            }
            writer.writerow({**result, **derived})
    write_atomically(path, text.getvalue())


USAGE = """usage: python -m sftn_fast.report FOLDER [FOLDER ...]

FOLDER is the folder of a run. One: its report is written again and printed. Several: the runs are compared."""


def main(argv: Sequence[str] | None = None) -> int:
    """Make the report of the run folder named on the command line, or compare several."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or any(argument.startswith("-") for argument in arguments):
        asked = arguments in (["-h"], ["--help"])
        print(USAGE, file=sys.stdout if asked else sys.stderr)
        return 0 if asked else 2
    folders = [Path(argument).expanduser() for argument in arguments]
    try:
        width = terminal_width()
        print(write(folders[0], width=width) if len(folders) == 1 else compare(folders, width), end="")
    except ConfigError as error:
        print(f"error: {printable_lines(error)}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {printable_lines(describe(error))}", file=sys.stderr)
        return 1
    return 0
