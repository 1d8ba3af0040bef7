"""Words that are kept out of the prose: comments, docstrings, messages and the documentation."""

from __future__ import annotations

import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
INSTEAD = {
    "anew": "again",
    "beforehand": "first, or before",
    "hence": "so, or therefore",
    "lest": "so that ... not",
    "thereby": "so, or leave it out",
    "whoever": "the code that, or anyone who",
    "whosoever": "anyone who",
    "goes on with": "continues with, or resumes",
    "go on with": "continue with, or resume",
    "goes on from": "resumes from",
    "gone on with": "continued, or resumed",
    "behind the last": "after the last",
    "save for": "except",
    "is to be": "must be, should be, or will be",
    "there is none that": "no ... does",
    "of its own accord": "by itself",
    "wherefore": "so",
    "thereof": "of it",
    "heretofore": "until now",
    "albeit": "although",
    "nought": "zero, or nothing",
}
"""Words that a reader stumbles over, and what to say instead."""
VERB = re.compile(r"save for (a|the) backward", re.IGNORECASE)
"""What autograd does, where "save for" does not mean "except"."""
BANNED = re.compile(rf"\b({'|'.join(words.replace(' ', chr(92) + 's+') for words in INSTEAD)})\b", re.IGNORECASE)
C_COMMENT = re.compile(r"//[^\n]*(?:\n[ \t]*//[^\n]*)*|/\*.*?\*/", re.DOTALL)

PYTHON = [path for folder in ("sftn_fast", "bench") for path in sorted((ROOT / folder).rglob("*.py"))]
NATIVE = [path for ending in ("cpp", "h", "cu", "cuh") for path in sorted((ROOT / "csrc").rglob(f"*.{ending}"))]
RECIPES = sorted((ROOT / "sftn_fast" / "recipes").glob("*.yaml"))
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "csrc").rglob("*.md"))]


def of_python(source: str) -> Iterator[tuple[int, str]]:
    """Yield the comments, joined where they follow each other, and the strings, each with its first line."""
    comment, first, last = "", 0, -1
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            if token.start[0] != last + 1:
                yield first, comment
                comment, first = "", token.start[0]
            comment, last = f"{comment}{token.string.lstrip('#')}\n", token.start[0]
        elif token.type == tokenize.STRING or token.type == getattr(tokenize, "FSTRING_MIDDLE", None):
            yield token.start[0], token.string
    yield first, comment


def of_native(source: str) -> Iterator[tuple[int, str]]:
    """Yield the comments, joined where they follow each other, each with its first line."""
    for found in C_COMMENT.finditer(source):
        yield source.count("\n", 0, found.start()) + 1, re.sub(r"^[ \t]*(//|\*)", "", found[0], flags=re.MULTILINE)


def prose(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the parts of a file that people read, each with its first line."""
    source = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        return of_python(source)
    return of_native(source) if path in NATIVE else iter([(1, source)])


def faults(path: Path) -> list[str]:
    """A line for each banned word in a file: where it is, and what to say instead."""
    found = []
    for line, text in prose(path):
        for match in BANNED.finditer(text):
            if VERB.match(text, match.start()):
                continue
            word = " ".join(match[1].lower().split())
            place = f"{path.relative_to(ROOT)}:{line + text.count(chr(10), 0, match.start())}"
            found.append(f"{place}: {word} -> say {INSTEAD[word]} instead")
    return found


@pytest.mark.parametrize("path", [*PYTHON, *NATIVE, *RECIPES, *PAGES], ids=lambda path: str(path.relative_to(ROOT)))
def test_the_words_are_ordinary_ones(path: Path) -> None:
    found = faults(path)
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize(
    ("name", "text", "lines"),
    [
        ("a.py", '"""Read it\n\nanew."""\n', ["a.py:3: anew -> say again instead"]),
        ("a.py", "x = 1  # the run goes on\n# goes\n# on with it\n", ["a.py:2: goes on with -> say continues with"]),
        ("a.py", 'print(\n    f"Hence {x}"\n)\n', ["a.py:2: hence -> say so, or therefore instead"]),
        ("a.py", "beforehand = only_beforehand\n", []),
        ("a.md", "What to save for a backward pass, all save\nfor one.\n", ["a.md:1: save for -> say except instead"]),
        ("a.md", "One line.\nWhoever\nreads this. Chest, lesson, renewal.\n", ["a.md:2: whoever -> say the code that"]),
        ("csrc/a.cu", "int hence;  // a\n  // nought\n/* lest\n   it */\n", ["a.cu:2: nought", "a.cu:3: lest"]),
    ],
)
def test_a_banned_word_is_found_where_it_is(
    name: str, text: str, lines: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    monkeypatch.setitem(globals(), "NATIVE", [path] if name.startswith("csrc") else [])
    found = faults(path)
    assert len(found) == len(lines)
    assert all(wanted in line for wanted, line in zip(lines, found, strict=True)), found


def test_all_kinds_of_files_are_read() -> None:
    assert len(PYTHON) > 150 and len(NATIVE) > 40 and len(RECIPES) > 15 and len(PAGES) > 15
