"""Every method with every pair of the literature: it builds or is refused in a line, and the document says which."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from sftn_fast import cli, distillers, models
from sftn_fast.distillers import registry
from sftn_fast.distillers.method import Setup
from sftn_fast.distillers.registry import FAMILIES
from sftn_fast.report import methods_page, published_since
from sftn_fast.report.published import PAIRS

DOCUMENT = Path(__file__).parents[2] / "docs" / "methods.md"


def test_the_document_is_what_the_methods_say() -> None:
    assert DOCUMENT.read_text() == methods_page.document(), "python -m sftn_fast.report.methods_page > docs/methods.md"


def test_every_method_is_in_one_family() -> None:
    listed = re.findall(r"^\| ([\w ]+?) +\| `(\w+)` ", methods_page.document(), re.MULTILINE)
    assert sorted(name for _, name in listed) == sorted(registry.names())
    assert list(dict.fromkeys(family for family, _ in listed)) == list(FAMILIES)


def test_published_accuracies_are_of_methods_pairs_and_sources_that_exist() -> None:
    heading, *rows = published_since.cifar100_table()
    assert len(heading) == 2 + len(PAIRS)
    for name, source, *numbers in rows + published_since.imagenet_table()[1:]:
        assert distillers.parse(name.strip("`")).methods and source in published_since.SOURCES
        assert len(numbers) in (1, len(PAIRS)) and all(x == "-" or 58 < float(x) < 80 for x in numbers)


@pytest.mark.parametrize("method", registry.names())
def test_a_pair_and_a_method_are_a_whole_command_line(method: str) -> None:
    # Which pair it is decides nothing about the method's words, and the other way round: a row and a column will do.
    config, _ = cli.parse(["--config", "resnet32x4_resnet8x4", "--method", method])
    assert (config.teacher, config.student, config.data.name) == ("resnet32x4", "resnet8x4", "cifar100")
    assert distillers.parse(config.distill).methods[0].name == method


@pytest.mark.parametrize(("teacher", "student"), PAIRS)
def test_a_method_builds_or_refuses_the_pair_in_a_line(teacher: str, student: str) -> None:
    config, _ = cli.parse(["--config", f"{teacher}_{student}", "--method", "at"])
    assert (config.teacher, config.student, config.distill) == (teacher, student, "at,kd=1")
    for name, reason in methods_page.refused_by(teacher, student).items():
        assert reason.startswith(name) and "\n" not in reason


def test_a_whole_distiller_refuses_what_its_method_does() -> None:
    student, teacher = models.build("vgg8"), models.build("resnet8")
    with pytest.raises(ValueError, match="fsp"):
        distillers.build("fsp,kd=1", student=student, teacher=teacher, num_samples=50)


PUBLISHED = [
    (name, *pair.split(), spec)
    for name in registry.names()
    for pair, specs in registry.find(name).published.items()
    for spec in ((specs,) if isinstance(specs, str) else specs)
]


@pytest.mark.parametrize(("method", "teacher", "student", "spec"), PUBLISHED)
def test_published_settings_build_the_pair(method: str, teacher: str, student: str, spec: str) -> None:
    """Build the method with the settings that its authors publish for the pair."""
    (term,) = distillers.parse(spec).methods
    assert term.name == method and {teacher, student} <= set(models.names())
    size = 32 if teacher in {name for pair in PAIRS for name in pair} else 224
    with torch.device("meta"):
        about = (methods_page._about(name, size) for name in (student, teacher))
        registry.find(method)(Setup(*about, 50_000, size), **term.options)
