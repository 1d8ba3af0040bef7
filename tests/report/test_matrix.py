"""The report on several methods: table, sentences, page."""

from __future__ import annotations

import csv
import itertools
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from finished_jobs import METHODS, add_job

from sftn_fast import report
from sftn_fast.report import figure
from sftn_fast.report.matrix import read_matrix
from sftn_fast.report.results import read_results


def table(folder: Path) -> dict[str, dict[str, str]]:
    """The Markdown table's cells by method and heading."""
    lines = [line for line in report.write(folder).splitlines() if line.startswith("|")]
    head, _, *body = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    return {line[0]: dict(zip(head, line, strict=True)) for line in body}


def test_a_line_a_method_in_the_order_of_the_configuration(folder: Path) -> None:
    assert tuple(table(folder)) == METHODS


def test_means_gains_and_their_test(folder: Path) -> None:
    cells = table(folder)["sp,kd=1"]
    assert (cells["standard teacher"], cells["SFTN teacher"]) == ("71.00 ± 1.00", "73.00 ± 2.00")
    # Differences 1, 2, 3: t = 2 / (1 / sqrt 3), p = 0.0742 with 2 degrees of freedom, twice that by Holm for two.
    assert (cells["n"], cells["gain of SFTN"], cells["p (Holm)"]) == ("3", "+2.00 ± 1.00", "0.148")
    assert cells["95 % CI"] == "-0.48 to +4.48"
    assert (cells["KL, standard / SFTN"], cells["seconds, standard / SFTN"]) == ("0.2500 / 0.2500", "10.0 / 10.0")


def test_the_legend_fits_into_a_picture_with_every_teacher(tmp_path: Path) -> None:
    for kind in ("teacher", "early", "soteacher", "sftn", "student"):
        add_job(tmp_path, kind, 0, 70.0)
    for source, method in itertools.product(("teacher", "early", "soteacher", "sftn"), ("kd", "crd")):
        add_job(tmp_path, f"distill-{source}-{method}", 0, 70.0, method)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"methods": ["kd", "crd"]}))
    rows = read_results(tmp_path)
    drawn = figure._plot_matrix(figure.pyplot(), rows, read_matrix(rows, {"methods": ["kd", "crd"]}))
    drawn.canvas.draw()
    (legend,) = drawn.legends
    assert len(legend.get_texts()) == 9
    inside, whole = legend.get_window_extent(), drawn.bbox
    assert whole.x0 <= inside.x0 and inside.x1 <= whole.x1


def test_a_method_with_too_few_pairs_has_no_p(folder: Path) -> None:
    cells = table(folder)["at:p=1<2>,kd=1"]
    assert (cells["n"], cells["gain of SFTN"], cells["p (Holm)"]) == ("2", "+0.75 ± 0.35", "-")
    assert cells["standard teacher"] == "61.00 ± 1.00 (n = 3)"


def test_published_numbers_and_gaps(folder: Path) -> None:
    cells = table(folder)
    # RepDistiller reports the last epoch, SSKD the best one, which is half a point above it here.
    assert (cells["kd"]["published"], cells["kd"]["gap"]) == ("73.33 (RepDistiller)", "-3.33")
    assert (cells["sp,kd=1"]["published"], cells["sp,kd=1"]["gap"]) == ("74.74 (SSKD)", "-3.24")
    assert cells["at:p=1<2>,kd=1"]["published"] == "-"
    text = report.write(folder)
    assert "standard teacher: 79.42 published (RepDistiller), gap +0.58 points" in text
    assert "not the SFTN paper's" in text


def test_another_data_set_has_no_published_numbers(folder: Path) -> None:
    (folder / "config.yaml").write_text(yaml.safe_dump({"methods": list(METHODS), "data": {"name": "digits"}}))
    text = report.write(folder)
    assert "published" not in text and "gap" not in text


def test_sentences(folder: Path) -> None:
    text = report.write(folder)
    # Over the seeds that all methods have: (1 - 1 + 0.5) / 3 and (2 + 0 + 1) / 3.
    assert (
        "Mean gain of SFTN over 3 methods: +0.58 ± 0.59 points, 95 % CI -4.71 to +5.88 (paired by seed, n = 2)" in text
    )
    assert "student alone (resnet8x4): top-1 73.00 ± 1.00 %, n = 3" in text
    assert "two-sided paired t-test, n >= 3, Holm-corrected for 2 methods" in text
    # 3 x 3 baselines and 17 students of ten seconds on two devices.
    assert "26 trainings, 520 device seconds" in text


class Page(HTMLParser):
    """Parser that counts tags and fails on anything that a self-contained page must not have."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.tags: dict[str, int] = {}
        self.text = ""
        self.feed(content)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in {
            *("html", "head", "meta", "title", "style", "body", "h1", "h2", "p", "ul", "li", "pre", "img", "div"),
            *("table", "thead", "tbody", "tfoot", "tr", "th", "td", "script", "details", "summary", "dl", "dt", "dd"),
        }, tag
        for name, value in attrs:
            assert name not in ("href", "onclick")
            assert name != "src" or str(value).startswith("data:image/png;base64,")
        self.tags[tag] = self.tags.get(tag, 0) + 1

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.usefixtures("rendered")
def test_the_page_holds_everything_and_needs_nothing(folder: Path) -> None:
    report.write(folder)
    content = (folder / "report.html").read_text()
    page = Page(content)
    assert page.tags["img"] == 2 and page.tags["table"] == 4
    for words in ("at:p=1<2>,kd=1", "A & B <GPU>", "torch 9.9", "2026-01-01", "+2.00 ± 1.00", "12,345", "520.0"):
        assert words in page.text, words
    assert "weight_decay: 0.0005" in page.text
    assert "prefers-color-scheme: dark" in content and "http" not in content


def test_results_by_line(folder: Path) -> None:
    report.write(folder)
    with (folder / "results.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 26
    assert {line["method"] for line in lines} == {"", *METHODS}
    assert {line["device_seconds"] for line in lines} == {"20.0"}


def test_a_matrix_of_one_teacher_has_no_gain(folder: Path) -> None:
    for path in folder.glob("seed*/distill-sftn-*/result.json"):
        path.unlink()
    cells = table(folder)["kd"]
    assert (cells["SFTN teacher"], cells["gain of SFTN"], cells["standard teacher"]) == ("-", "-", "70.00 ± 0.00")


def test_a_run_of_one_method_has_a_table_of_its_networks_and_a_page(tmp_path: Path) -> None:
    for seed in range(3):
        for name in ("teacher", "student", "distill-teacher", "distill-sftn"):
            add_job(tmp_path, name, seed, 70.0 + seed * len(name), "kd" if "distill" in name else None)
    text = report.write(tmp_path)
    assert "| student of SFTN teacher " in text and "Mean gain" not in text
    assert "student of SFTN teacher vs. student of standard teacher: -3.00 ± 3.00 points" in text
    assert Page((tmp_path / "report.html").read_text()).tags["img"] == 2
