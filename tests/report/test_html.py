"""The page of a report escapes all text, defines its headings and colors its gains."""

from __future__ import annotations

import itertools
import re
from importlib import resources
from pathlib import Path

import pytest

from sftn_fast.report import figure, table
from sftn_fast.report.glossary import DEFINITIONS, define
from sftn_fast.report.html import PER_TRAINING, TEMPLATE, page
from sftn_fast.report.matrix import MethodLine
from sftn_fast.report.results import Row
from sftn_fast.report.statistics import Paired

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
    assert content.count("<script") == 1
    assert content.count("&lt;script&gt;") == 11


@pytest.mark.parametrize("character", ["<", ">", "&", '"', "'"])
def test_no_character_leaves_its_attribute_or_element(character: str, tmp_path: Path) -> None:
    (tmp_path / "picture.png").write_bytes(b"any")
    text = f"here{character}there"
    texts = {"title": text, "subtitle": text, "settings": text, "costs": [[text], [text]]}
    content = page(tables=[(text, [[text]], [text])], pictures=[(text, tmp_path / "picture.png")], rows=[], **texts)
    assert text not in content and text.capitalize() not in content
    assert len(re.findall("(?i)here&#?[a-z0-9]+;there", content)) == 11


def test_the_template_is_a_file_of_the_package() -> None:
    template = resources.files("sftn_fast.report").joinpath(TEMPLATE).read_text("utf-8")
    assert "<!DOCTYPE html>" in template
    for off in ("safe", "autoescape", "Markup"):
        assert not re.search(rf"{{[{{%].*\b{off}\b", template), f"{off} switches escaping off"


def make_row() -> Row:
    result = {"seed": 0, "network": "n", "parameters": 1, "epochs": 1, "last": {"top1": 1.0}, "best": {"top1": 1.0}}
    result |= {"agreement": None, "kl": None, "seconds": 1.0, "images_per_second": 1.0, "data_wait_share": 0.0}
    return Row("student", "n", (result,))


def make_page(tables: list[tuple[str, list[list[str]], list[str]]]) -> str:
    rows = [make_row()]
    costs = table.costs_table(rows)
    return page(title="t", subtitle="s", tables=tables, pictures=[], rows=rows, costs=costs, settings="")


def test_every_heading_is_defined_below_its_table() -> None:
    rows = [make_row()]
    line = MethodLine("kd", {"teacher": rows[0]}, None, None, None)
    headings = [*table.rows_table(rows)[0], *table.matrix_table([line])[0], *table.costs_table(rows)[0]]
    headings += [column.heading for column in PER_TRAINING]
    undefined = [heading for heading in headings if heading and not define([heading])]
    assert not undefined
    content = make_page([("Results", table.rows_table(rows), [])])
    first = content[content.index("</table>") :]
    assert first.index("What the columns mean") < first.index("<table")
    for heading in ("CKA", "top-1 best %"):
        assert DEFINITIONS[heading].split(".")[0] in content


def test_networks_are_not_defined_as_results_of_their_students() -> None:
    assert list(define(["class", "images", "standard teacher", "SFTN teacher"])) == ["class", "images"]
    assert "standard teacher" in define(["method", "standard teacher"])


def test_headings_begin_with_a_capital() -> None:
    content = make_page([("Results", [["method", "n", "p (Holm)", "top-1 last %"], ["kd", "1", "-", "3"]], [])])
    assert "<tr><th>Method</th><th>n</th><th>p (Holm)</th><th>Top-1 last %</th></tr>" in content
    for heading in re.findall(r"<h2>(.*?)</h2>", content):
        assert heading[0].isupper()


def test_the_total_is_no_line_to_sort() -> None:
    content = make_page([])
    assert re.search(r"<tfoot>\s*<tr><td>all</td>", content)


@pytest.mark.parametrize(
    ("differences", "color"),
    [
        ((1.0,), figure.UNDECIDED),
        ((1.0, 1.0, 1.0), figure.UNDECIDED),
        ((1.0, 1.1, 0.9), figure.BETTER),
        ((-1.0, -1.1, -0.9), figure.WORSE),
        ((1.0, -0.5, 0.2), figure.UNDECIDED),
    ],
)
def test_a_gain_has_a_color_only_where_its_interval_leaves_out_zero(differences: tuple[float, ...], color: str) -> None:
    assert figure._verdict(Paired(differences)) == color


@pytest.mark.parametrize("values", [(0.019, 0.16), (0.001, 0.3), (0.02, 0.05), (1e-5, 2.0), (0.3, 1.9), (0.08, 0.09)])
def test_labels_of_the_distance_do_not_overlap(values: tuple[float, float]) -> None:
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    chart, axis = plt.subplots(figsize=(4.2, 2))
    axis.plot(values, [0, 0])
    axis.margins(x=0.1)
    figure._log_scale(axis, values)
    chart.canvas.draw()
    shown = [label for label in axis.get_xticklabels(which="both") if label.get_text()]
    low, high = axis.get_xlim()
    boxes = sorted(
        (label.get_window_extent() for label in shown if low <= label.get_position()[0] <= high),
        key=lambda box: box.x0,
    )
    plt.close(chart)
    assert len(boxes) >= 2
    for left, right in itertools.pairwise(boxes):
        assert left.x1 < right.x0
