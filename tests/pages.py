"""Fenced blocks of README.md and docs/, in the order in which a reader meets them."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
FENCE = re.compile(r'^```(\w*)(?: title="(.*?)")?\n(.*?)^```', flags=re.DOTALL | re.MULTILINE)
CODE = ("sh", "bash", "python")
SIGNATURES = ("docs/architecture.md",)
"""Pages with signatures and trees in their blocks, which are not code to run."""


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: str
    line: int
    language: str
    title: str | None
    text: str

    @property
    def place(self) -> str:
        """Page and line, for a message."""
        return f"{self.page}:{self.line}"

    def commands(self) -> list[str]:
        """Return the commands of a shell block, continued lines joined. A script is one command."""
        if self.text.startswith("#!"):
            return [self.text]
        return [line for line in self.text.replace("\\\n", " ").splitlines() if shlex.split(line, comments=True)]


def page_names() -> list[str]:
    """Return README.md and the pages of docs/ in the order of the site's navigation."""
    settings = (ROOT / "mkdocs.yml").read_text()
    nav = yaml.safe_load(settings)["nav"]
    return ["README.md", *(f"docs/{page}" for page in _leaves(nav))]


def _leaves(entry: object) -> list[str]:
    if isinstance(entry, str):
        return [entry]
    children = entry.values() if isinstance(entry, dict) else entry
    return [page for child in children for page in _leaves(child)]


def blocks(page: str) -> list[Block]:
    """Return all fenced blocks of a page, including file contents."""
    text = (ROOT / page).read_text()
    return [
        Block(page, text.count("\n", 0, found.start()) + 1, found[1], found[2], found[3])
        for found in FENCE.finditer(text)
    ]


def module_commands(module: str) -> list[tuple[str, list[str]]]:
    """Return place and arguments of each ``python -m MODULE`` on all pages, in order."""
    found = []
    for page in page_names():
        for block in blocks(page):
            for command in block.commands() if block.language in ("sh", "bash") else []:
                words = [] if command.startswith("#!") else shlex.split(command, comments=True)
                if words[:3] == ["python", "-m", module]:
                    found.append((block.place, words[3:]))
    return found
