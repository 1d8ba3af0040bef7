"""CONTRIBUTING.md: its steps, followed in a copy of the repository, and the files that it names."""

from __future__ import annotations

import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pages
import pytest

from sftn_fast import models, ops
from sftn_fast.data import source

PAGE = (pages.ROOT / "CONTRIBUTING.md").read_text()
FILES = {
    title: dedent(text)
    for title, text in re.findall(r'^   ```python title="(.+?)"\n(.*?)^   ```$', PAGE, flags=re.DOTALL | re.MULTILINE)
}
"""Files that the steps write, by their paths."""
HEADINGS = ("Add an op", "Add a method", "Add a network", "Add a data set")

INSERTED = {
    "sftn_fast/models/__init__.py": ("    resnet,\n", "    plain,\n    resnet,\n"),
    "sftn_fast/cli/network_names.py": ("SMALL_IMAGES = (\n", 'SMALL_IMAGES = (\n    "plain5",\n'),
    "tests/models/test_zoo.py": ("ZOO = {\n", 'ZOO = {\n    "plain5": (32_532, R, 64, (16, 32, 64)),\n'),
    "sftn_fast/data/sources/__init__.py": ("    stl10,\n", "    stl10,\n    stripes,\n"),
    "sftn_fast/config.py": ('"digits", "fashion_mnist"', '"digits", "stripes", "fashion_mnist"'),
}
"""Lines of existing files that the steps change: what is there, and what takes its place."""
FORMULA = """

def test_mse():
    assert loss("mse") == pytest.approx(float((STUDENT - TEACHER).square().mean()))
"""


def section(heading: str) -> str:
    return PAGE.split(f"## {heading}\n")[1].split("\n## ")[0]


def steps(heading: str) -> list[str]:
    """Return the numbered steps of a section, without the code between them."""
    text = re.sub(r"^   ```.*?^   ```$", "", section(heading), flags=re.DOTALL | re.MULTILINE)
    return re.split(r"^\d\. ", text, flags=re.MULTILINE)[1:]


@pytest.mark.parametrize("heading", HEADINGS)
def test_there_are_five_steps(heading: str) -> None:
    assert len(steps(heading)) == 5


@pytest.mark.parametrize("heading", HEADINGS)
def test_files_that_the_steps_name_exist(heading: str) -> None:
    """Those of the op ``foo`` exist for ``logits``; those that a step writes are on the page."""
    named = re.findall(r"`((?:sftn_fast|csrc|tests|bench)/[\w./]*)`", "\n".join(steps(heading)))
    assert len(named) >= 2
    for name in named:
        assert name in FILES or (pages.ROOT / name.replace("foo", "logits")).exists(), name


def test_commands_of_the_page_exist() -> None:
    makefile = (pages.ROOT / "Makefile").read_text()
    targets = re.findall(r"\bmake (\w+)", PAGE)
    assert targets and all(f"\n{target}:" in makefile for target in targets)
    commands = re.findall(r"python -m pytest -q ([^`]+)`", PAGE)
    assert len(commands) >= 5
    for command in commands:
        for path in shlex.split(command.partition(" -k ")[0]):
            assert path in FILES or (pages.ROOT / path).exists(), path


@pytest.fixture
def table_tests(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """Return the modules whose tests hold a table against a registry, by name."""
    found = {"ops": "test_every_op", "models": "test_zoo", "cli": "test_messages", "data": "test_source"}
    for folder in found:
        monkeypatch.syspath_prepend(str(pages.ROOT / "tests" / folder))
    return {name: importlib.import_module(name) for name in found.values()}


@pytest.mark.parametrize(
    ("module", "test"),
    [
        ("test_every_op", "test_table_holds_every_public_function"),
        ("test_every_op", "test_reference_has_the_same_functions"),
        ("test_zoo", "test_all_networks_are_listed"),
        ("test_messages", "test_the_names_are_those_of_the_registry"),
        ("test_source", "test_every_data_set_of_the_configuration_is_registered"),
    ],
)
def test_a_step_that_is_forgotten_fails(
    module: str, test: str, table_tests: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is public, but in no table, fails the table's test."""
    check = getattr(table_tests[module], test)
    check()
    monkeypatch.setattr(ops, "foo_loss", lambda: None, raising=False)
    monkeypatch.setattr(ops, "__all__", [*ops.__all__, "foo_loss"])
    monkeypatch.setitem(models.registry._factories, "plain5", models.registry._factories["resnet8"])
    monkeypatch.setitem(source._loaders, "stripes", lambda config: source.load(config))
    with pytest.raises(AssertionError):
        check()


@pytest.fixture(scope="module")
def followed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the repository in which the steps for a method, a network and a data set were followed."""
    copy = tmp_path_factory.mktemp("contributing") / "repository"
    for name in ("sftn_fast", "tests", "docs"):
        shutil.copytree(pages.ROOT / name, copy / name, ignore=shutil.ignore_patterns("*.so", "simt", "__pycache__"))
    for library in (pages.ROOT / "sftn_fast").glob("*.so"):
        (copy / "sftn_fast" / library.name).symlink_to(library)
    shutil.copy(pages.ROOT / "pyproject.toml", copy)
    for name, text in FILES.items():
        assert not (copy / name).exists(), name
        (copy / name).write_text(text)
    for name, (before, after) in INSERTED.items():
        text = (copy / name).read_text()
        assert text.count(before) == 1, name
        (copy / name).write_text(text.replace(before, after))
    with (copy / "tests/distillers/test_formulas.py").open("a") as file:
        file.write(FORMULA)
    return copy


DRIVER = """
import json, sys
import pytest
from sftn_fast import train
from sftn_fast.report import methods_page

sys.path.insert(0, "tests")
methods_page.PAIRS = methods_page.PAIRS[:1]  # the others take ten seconds
with open("docs/methods.md", "w") as page:
    page.write(methods_page.document())
for arguments in json.loads(sys.argv[1]):
    code = pytest.main([*arguments, "-p", "no:cacheprovider", "-p", "no:xdist"])
    assert code == 0, arguments
options = "--student plain5 --teacher plain5 --distill mse=1 --epochs 1 --seeds [0] --stages [teacher,distill]"
assert train.main([*json.loads(sys.argv[2]), *options.split()]) in (0, None)
"""
"""One process for all commands, since each would import torch again."""


@pytest.mark.slow
def test_the_steps_lead_to_a_method_a_network_and_a_data_set(followed: Path) -> None:
    tests = [
        shlex.split(command) for command in re.findall(r"python -m pytest -q ([^`]+)`", "".join(map(last, HEADINGS)))
    ]
    (training,) = re.findall(r"`python -m sftn_fast\.train (.+?)`", last("Add a data set"))
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, json.dumps(tests), json.dumps(shlex.split(training))],
        cwd=followed,
        env={**os.environ, "PYTHONPATH": str(followed), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert [int(count) for count in re.findall(r"(\d+) passed", done.stdout)] >= [10, 10, 1]
    assert "| `mse` " in (followed / "docs" / "methods.md").read_text()
    assert list(followed.glob("runs/*/seed0/distill*/result.json"))


def last(heading: str) -> str:
    return steps(heading)[-1]
