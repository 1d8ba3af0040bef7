"""README.md, CONTRIBUTING.md and docs/: what they name exists, and their figures are those on record."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from statistics import mean, stdev

import pages
import pytest
import yaml

import sftn_fast
from bench.evidence import choices, teachers
from bench.record import read
from sftn_fast import models, transfer
from sftn_fast.config import DATASETS
from sftn_fast.distillers import registry

README = (pages.ROOT / "README.md").read_text()
RESULTS = (pages.ROOT / "docs" / "results.md").read_text()
MAKEFILE = (pages.ROOT / "Makefile").read_text()
REPORTS = {name: pages.ROOT / "bench" / "results" / name / "report.md" for name in ("fashion_mnist", "few_images")}
SHORTENED = {
    path.parent.name: path.parent / "report.md"
    for path in sorted((pages.ROOT / "bench" / "results").glob("*/teachers.json"))
}
"""Reports whose tables by class the page leaves out. It has what their teachers knew instead."""
PROSE = ("CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", *pages.page_names())
BANNED = (
    *("anew", "beforehand", "hence", "lest", "thereby", "whoever", "whosoever", "goes on with", "go on with"),
    *("goes on from", "gone on with", "behind the last", "save for", "is to be", "there is none that"),
    *("of its own accord", "wherefore", "thereof", "heretofore", "albeit", "nought"),
)
"""Words that no page uses: a reader is not at home in them."""


def readme_section(heading: str) -> str:
    return README.split(f"\n## {heading}\n")[1].split("\n## ")[0]


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 125


def test_its_table_names_every_method_and_data_set_and_only_networks_that_exist():
    rows = dict(re.findall(r"^\| (methods|networks|data) \| (.+?) \|", readme_section("What is in it"), re.MULTILINE))
    named = {name.strip().lower() for name in re.split(r"[,;]|between students|and ", rows["methods"])} - {""}
    assert named == {*registry.names(), "dml", "kdcl"}
    assert f"{len(registry.names())} distillation methods" in README.replace("\n", " ")
    assert set(re.findall(r"\w+", rows["data"])) - {"and", "for", "your", "images"} == set(DATASETS)
    networks = re.findall(r"[\w]+", rows["networks"].partition(";")[0])
    for name in set(networks) - {"to"}:
        assert any(known == name or known.startswith(f"{name}_") for known in (*models.names(), "vgg_")), name


def test_the_evidence_is_that_of_the_reports():
    evidence = readme_section("What came out")
    figures = re.findall(r"\d+\.\d+(?: ± \d+\.\d+)?", evidence)
    reports = "".join(path.read_text() for path in (*REPORTS.values(), *SHORTENED.values()))
    assert len(figures) >= 9
    for figure in figures:
        assert figure in reports, figure
    (picture,) = re.findall(r"!\[.+?\]\((.+?)\)", README)
    assert Path(picture).parts[-2] in {*REPORTS, *SHORTENED}


@pytest.mark.parametrize("name", REPORTS)
def test_the_results_page_has_the_whole_reports(name):
    begin, end = f"<!-- {name}: the report of bench/results -->\n\n", f"\n\n<!-- end of {name} -->"
    text = RESULTS.split(begin)[1].split(end)[0]
    assert text == REPORTS[name].read_text().partition("\n![")[0].strip()


@pytest.mark.parametrize("name", SHORTENED)
def test_the_results_page_has_reports_without_their_classes_and_the_teachers(name):
    folder = pages.ROOT / "bench" / "results" / name
    begin, end = f"<!-- {name}: the report of bench/results -->\n\n", f"\n\n<!-- end of {name} -->"
    assert RESULTS.split(begin)[1].split(end)[0] == SHORTENED[name].read_text().partition("\n\nAccuracy by class")[0]
    rows = json.loads((folder / "teachers.json").read_text())
    assert teachers.table(rows) == (folder / "teachers.md").read_text().strip()
    assert f"<!-- {name}: the teachers of bench/results -->\n\n{teachers.table(rows)}\n" in RESULTS


WEIGHTS = {
    "2,000 images, 10 classes, 60 epochs": (("few_garments_kd",), (), ("few_garments_kl0.5",), ()),
    "5,000 images, 10 classes, 30 epochs": (("more_garments",), (), ("more_garments_kl0.5",), ()),
    "500 images, 10 classes, 240 epochs": (("long_garments",), (), ("long_garments_kl0.5",), ()),
    "2,000 images, 100 classes, 60 epochs": (
        ("garment_pairs",),
        ("garment_pairs_kl1",),
        ("garment_pairs_kl0.5", "garment_pairs_kl0.5_fresh"),
        ("garment_pairs_kl0",),
    ),
    "2,000 images, 10 classes, wrn_16_2 to vgg8, 30 epochs": (("unlike_garments",), (), (), ()),
}
"""Experiments by task, then by the weight of SFTN's divergence: 3, 1, 0.5 and 0."""


def gains_of(experiments):
    """Return the points that each seed's student by KD gains with a student-friendly teacher."""
    found = []
    for name in experiments:
        rows = csv.DictReader((pages.ROOT / "bench" / "results" / name / "results.csv").read_text().splitlines())
        of = {(row["name"], row["seed"]): float(row["top1_last"]) for row in rows if row["method"] == "kd"}
        found += [of["distill-sftn-kd", seed] - top1 for (job, seed), top1 in of.items() if job == "distill-teacher-kd"]
    return found


def test_the_table_of_the_weights_is_that_of_the_results():
    lines = ["| task | weight 3, the paper's | 1 | 0.5 | 0 |", "|---|---:|---:|---:|---:|"]
    for task, experiments in WEIGHTS.items():
        gains = [gains_of(names) for names in experiments]
        cells = [f"{mean(of):+.2f} ± {stdev(of):.2f} ({len(of)})" if of else "-" for of in gains]
        lines.append(f"| {task} | {' | '.join(cells)} |")
    begin, end = "<!-- weights: from the results of the experiments below -->\n\n", "\n\n<!-- end of weights -->"
    assert RESULTS.split(begin)[1].split(end)[0] == "\n".join(lines)


def test_the_results_page_has_the_table_of_the_choices():
    table = (pages.ROOT / "bench" / "results" / "choices" / "choices.md").read_text().strip()
    assert f"<!-- choices: the table of bench/results -->\n\n{table}\n" in RESULTS
    record = pages.ROOT / "bench" / "results" / "choices" / "choices.json"
    assert choices.table(choices.load(record)) == table


def test_the_range_of_whole_steps_is_that_of_the_record():
    gains = [row["ratio"] for row in read("training-cpu")[1] if row["implementation"] == "ours"]
    assert f"{min(gains):.2f} to {max(gains):.2f} times as fast" in README.replace("\n", " ")


def test_the_number_of_faults_is_that_of_the_table():
    reliability = (pages.ROOT / "docs" / "reliability.md").read_text()
    faults = len(re.findall(r"^\| [0-9]+ \|", reliability, re.MULTILINE))
    assert f"lists {faults} faults" in README.replace("\n", " ")


def test_the_citation_is_of_this_version_and_of_the_paper():
    citation = yaml.safe_load((pages.ROOT / "CITATION.cff").read_text())
    assert (citation["cff-version"], citation["type"]) == ("1.2.0", "software")
    assert citation["version"] == sftn_fast.__version__
    (paper,) = citation["references"]
    assert paper["type"] == "conference-paper" and "Student-Friendly" in paper["title"] and paper["year"] == 2021
    assert all({"family-names", "given-names"} == author.keys() for author in paper["authors"])


def test_the_changelog_has_the_sections_of_its_format_in_their_order():
    order = ["Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"]
    text = (pages.ROOT / "CHANGELOG.md").read_text()
    versions = re.split(r"^## ", text, flags=re.MULTILINE)[1:]
    assert versions[0].startswith("[Unreleased]\n")
    for version in versions:
        sections = re.findall(r"^### (.+)$", version, re.MULTILINE)
        assert sections == [name for name in order if name in sections]


@pytest.mark.parametrize(("place", "argv"), pages.module_commands("sftn_fast.transfer"), ids=str)
def test_transfer_command_is_understood(place, argv):
    assert transfer.parse(argv).network == argv[0], place


def test_commands_are_found():
    assert len(pages.module_commands("sftn_fast.train")) >= 20
    for module in ("sftn_fast.transfer", "sftn_fast.report", "sftn_fast.data.verify", "sftn_fast.info"):
        assert pages.module_commands(module), module
    for target in re.findall(r"`make (\w+)`|^make (\w+)", README, flags=re.MULTILINE):
        assert f"\n{''.join(target)}:" in MAKEFILE


@pytest.mark.parametrize("page", PROSE)
def test_links_lead_to_files(page):
    text = re.sub(pages.FENCE, "", (pages.ROOT / page).read_text())
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[\w-]+)?\)", text):
        if "://" not in target:
            assert (pages.ROOT / page).parent.joinpath(target).exists(), target


@pytest.mark.parametrize("page", PROSE)
def test_no_page_uses_a_banned_word(page):
    text = " ".join((pages.ROOT / page).read_text().lower().split())
    assert [word for word in BANNED if re.search(rf"\b{word}\b", text)] == []
