"""Every back-quoted name of a document for developers exists: files, modules, Python and C++ names, variables.

Fenced blocks are not read. A document that gives instructions for a family ``foo`` is read with a real family in its
place, so that every file of the instructions is checked too.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
from functools import cache
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
SOURCES = ("sftn_fast", "csrc", "bench", "tests", "docs", "cmake")
"""Folders with files that a document may name without a folder."""
PLACEHOLDER, FAMILY = "foo", "logits"

WORDS = {
    "csrc/README.md": {
        "sftn_fast/_C": "built, not in the repository",
        "sftn_fast/_C_cuda": "built, not in the repository",
        "sftn_fast/_nodes_cpXY_torchX_Y_Z": "built, not in the repository",
        "foo_loss": "the op to be written",
        "-ffast-math": "an option of compilers",
    },
    "docs/architecture.md": {
        "_C_cuda": "built, not in the repository",
        "crd": "a method",
        "sftn VERB": "stands for every verb",
        "python -m sftn_fast.VERB": "stands for every verb",
        "init-NAME/": "a folder for each method that initialises",
        "(seed, e, s)": "a formula",
        "(logits, [branch logits])": "a value",
        "weights_only=True": "an option of torch.load",
        "register_autograd": "a function of torch.library",
    },
}
"""For each document, names that nothing here defines, with the reason."""

FENCE = re.compile(r"^```.*?^```", flags=re.DOTALL | re.MULTILINE)
QUOTED = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
SUFFIX = re.compile(r"\.(py|h|cuh?|cpp|md|yaml|toml|txt|csv|jsonl?|so)$")
COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", flags=re.DOTALL)


def names_in(text: str) -> list[str]:
    """Return the back-quoted names of a document, each once, in order."""
    return list(dict.fromkeys(QUOTED.findall(FENCE.sub("", text))))


@cache
def files() -> frozenset[str]:
    """Return the files of the source folders and of the root, relative to the root."""
    below = (path for folder in SOURCES for path in (ROOT / folder).rglob("*"))
    return frozenset(path.relative_to(ROOT).as_posix() for path in (*below, *ROOT.glob("*")) if path.is_file())


@cache
def python_names() -> frozenset[str]:
    """Return the names that the package's Python sources define: functions, classes, arguments, variables, fields."""
    found: set[str] = set()
    for path in (ROOT / "sftn_fast").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                found.add(node.name)
            elif isinstance(node, ast.arg):
                found.add(node.arg)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                found.add(node.id)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                found.add(node.attr)
    return frozenset(found)


@cache
def written_names() -> frozenset[str]:
    """Return the string constants of the package: files of a run, folders of a run, options without a key."""
    found: set[str] = set()
    for path in (ROOT / "sftn_fast").rglob("*.py"):
        nodes = ast.walk(ast.parse(path.read_text()))
        found |= {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    return frozenset(found)


@cache
def cpp_names() -> frozenset[str]:
    """Return the words of the C++ and CUDA sources and of their schema strings, without comments."""
    paths = [path for path in (ROOT / "csrc").rglob("*") if path.suffix in (".h", ".cuh", ".cpp", ".cu")]
    return frozenset(word for path in paths for word in re.findall(r"\w+", COMMENT.sub("", path.read_text())))


def is_file(name: str, document: str) -> bool:
    """Return whether a path or pattern names a file or folder, from the root, the document, the package or torch."""
    if any(part in ("", ".", "..") for part in name.rstrip("/").split("/")):
        return False
    torch_headers = Path(torch.__file__).parent / "include"
    bases = (ROOT, (ROOT / document).parent, ROOT / "sftn_fast", torch_headers)
    if any(next(base.glob(name.rstrip("/")), None) for base in bases):
        return True
    name = name.rstrip("/")
    return "/" not in name and any(name in path.split("/") for path in files())


def is_importable(dotted: str) -> bool:
    """Return whether a dotted name is a module, or an attribute reached from a module by attributes."""
    parts = dotted.split(".")
    if parts[0] not in ("torch", "sftn_fast"):
        return False
    for end in range(len(parts), 0, -1):
        try:
            module = importlib.import_module(".".join(parts[:end]))
        except ImportError:
            continue
        for part in parts[end:]:
            if not hasattr(module, part):
                return False
            module = getattr(module, part)
        return True
    return False


def runs(command: str, document: str) -> bool:
    """Return whether the module or script of a ``python`` command exists."""
    words = command.split()
    if words[1] == "-m":
        try:
            return importlib.util.find_spec(words[2]) is not None
        except ModuleNotFoundError:
            return False
    return is_file(words[1], document)


def is_namespace(name: str) -> bool:
    """Return whether a name is a namespace of ops that one of our libraries registers. torch invents any other."""
    namespace = name.removeprefix("torch.ops.")
    registering = [ROOT / "csrc" / "library.cpp", ROOT / "tests" / "simt" / "module.cpp"]
    return any(re.search(rf"LIBRARY\({namespace},", path.read_text()) for path in registering)


def exists(name: str, document: str) -> bool:
    """Return whether a name of a document names anything."""
    name = re.sub(rf"\b{PLACEHOLDER}(?=\b|_)|(?<=_){PLACEHOLDER}\b", FAMILY, name)
    if name.startswith("python "):
        return runs(name, document)
    if re.fullmatch(r"\.\w+", name):
        return any(path.endswith(name) for path in files()) or is_importable(f"sftn_fast{name}")
    if re.fullmatch(r"[A-Z][A-Z0-9_]+(=\S*)?", name) and "=" in name:
        return name.split("=")[0] in (ROOT / "setup.py").read_text()
    if name.startswith("SFTN_") and name in written_names():  # a variable that the package reads
        return True
    if name.startswith("--"):
        option = name.split()[0]
        return option in written_names() or set(option[2:].split(".")) <= python_names()
    if "/" in name or SUFFIX.search(name):
        return is_file(name, document) or name.rstrip("/") in written_names()
    name = re.sub(r"[(<\[=:].*", "", name.lstrip("@")).strip()
    if not re.fullmatch(r"[A-Za-z_][\w.]*", name):
        return False
    if name.startswith("torch.ops.") and name != "torch.ops.load_library":
        return is_namespace(name)
    if any(is_importable(f"{package}{name}") for package in ("", "sftn_fast.", "torch.")):
        return True
    if name.split(".")[0] in ("torch", "sftn_fast"):
        return False
    return set(name.split(".")) <= python_names() | cpp_names()


@pytest.mark.parametrize("document", WORDS)
def test_every_name_exists(document):
    names = names_in((ROOT / document).read_text())
    assert len(names) > 20
    unknown = [name for name in names if name not in WORDS[document] and not exists(name, document)]
    assert not unknown, f"{document} names what does not exist: {unknown}"


@pytest.mark.parametrize("document", WORDS)
def test_every_exception_is_needed(document):
    names = names_in((ROOT / document).read_text())
    needless = [name for name in WORDS[document] if name not in names or exists(name, document)]
    assert not needless, f"{document}: no exception is needed for {needless}"


GONE = [
    "without_second_derivatives",
    "csrc/vanished.h",
    "vanished.py",
    "cpu/vanished.h",
    "../csrc/logits.h",
    "tests/simt/vanished_*.py",
    "python -m bench.vanished",
    "python vanished.py build",
    "SFTN_VANISHED=0",
    "torch.vanished",
    "sftn_fast.ops.vanished",
    "torch.ops.vanished",
    "first_derivatives.vanished",
    "foo_vanished",
    ".vanished",
    "--vanished",
]


@pytest.mark.parametrize("name", GONE)
def test_what_is_gone_is_found(name):
    assert not exists(name, "csrc/README.md")


def test_fenced_blocks_are_not_read():
    assert names_in("`a` and `b`\n```py\n`c`\n```\n`a`, ``d``") == ["a", "b"]
