"""docs/reliability.md names tests that exist, for every fault."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = ("docs/reliability.md", "SECURITY.md")
NAMED = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


def rows() -> list[list[str]]:
    lines = (ROOT / "docs" / "reliability.md").read_text().splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if re.match(r"\| \d", line)]


@pytest.mark.parametrize("page", PAGES)
def test_every_test_that_is_named_exists(page):
    named = NAMED.findall((ROOT / page).read_text())
    assert named
    for file, name in named:
        functions = {
            node.name for node in ast.parse((ROOT / file).read_text()).body if isinstance(node, ast.FunctionDef)
        }
        assert name in functions, f"{page}: {file} has no {name}"


def test_every_fault_has_an_outcome_and_a_test():
    assert [row[0] for row in rows()] == [str(number) for number in range(1, 28)]
    for number, fault, outcome, tests in rows():
        assert fault and outcome, number
        assert NAMED.findall(tests), number
        assert not NAMED.sub("", tests).replace(",", "").strip(), f"row {number} has what is no test"
