"""The commands and snippets of the README and of docs/ run."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from sftn_fast import cli, transfer

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
MAKEFILE = (ROOT / "Makefile").read_text()
# docs/own-loop.md continues one snippet in the next: tests/distillers/test_without_trainer.py
PAGES = [README, *(page.read_text() for page in sorted((ROOT / "docs").glob("*.md")) if page.name != "own-loop.md")]
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text()


def blocks(language: str) -> list[str]:
    """Of all pages but the map, whose code is signatures."""
    pages = [page for page in PAGES if page != ARCHITECTURE]
    return [block for page in pages for block in re.findall(rf"```{language}\n(.*?)```", page, flags=re.DOTALL)]


def commands(module: str) -> list[list[str]]:
    """Arguments of each of the README's calls of a module."""
    import shlex

    lines = [shlex.split(line, comments=True) for block in blocks("sh") for line in block.splitlines()]
    return [words[3:] for words in lines if words[:3] == ["python", "-m", module]]


def train_commands() -> list[list[str]]:
    return commands("sftn_fast.train")


@pytest.mark.parametrize("snippet", blocks("python"), ids=lambda text: text.splitlines()[-1][:40])
def test_snippet_runs(snippet: str) -> None:
    done = subprocess.run([sys.executable, "-c", snippet], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("argv", train_commands(), ids=" ".join)
def test_train_command_is_understood(argv: list[str]) -> None:
    config, _ = cli.parse([argument for argument in argv if argument != "--print_config"])
    assert config.epochs >= 1


@pytest.mark.parametrize("argv", commands("sftn_fast.transfer"), ids=" ".join)
def test_transfer_command_is_understood(argv: list[str]) -> None:
    assert transfer.parse(argv).network == argv[0]


def test_commands_are_found() -> None:
    assert len(train_commands()) >= 5 and len(blocks("python")) >= 2
    assert len(commands("sftn_fast.transfer")) >= 1 and len(commands("sftn_fast.data.verify")) >= 1
    for target in re.findall(r"`make (\w+)`|^make (\w+)", README, flags=re.MULTILINE):
        assert f"\n{''.join(target)}:" in MAKEFILE
