"""What is packed, declared and promised by a wheel's name; nothing is compiled here."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "sftn_fast"
DISTRIBUTIONS = {"yaml": "pyyaml", "sklearn": "scikit-learn", "PIL": "pillow", "nvidia": "nvidia-dali-cuda130"}
"""Names on the package index, where they are others than the module's."""
OPTIONAL = {"torchvision": "vision", "nvidia": "dali", "tensorboard": "tensorboard", "onnxruntime": "onnx"}
OPTIONAL |= dict.fromkeys(("timm", "huggingface_hub"), "timm")
"""Modules that are imported where somebody asks for them, and the extra that brings them."""


def project() -> dict[str, Any]:
    tomllib = pytest.importorskip("tomllib" if sys.version_info >= (3, 11) else "tomli")
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def names(requirements: list[str]) -> set[str]:
    return {re.match(r"[\w.-]+", requirement)[0].lower() for requirement in requirements}  # type: ignore[index]


def imported() -> dict[str, set[str]]:
    """Modules that the package imports, by statement or by name, each with the files that do."""
    found: dict[str, set[str]] = {}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            for name in _imports(node):
                found.setdefault(name.partition(".")[0], set()).add(path.name)
    return {name: files for name, files in found.items() if name not in {*sys.stdlib_module_names, "sftn_fast", ""}}


def _imports(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.level == 0:
        return [str(node.module)]
    if isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) in (
        *("import_module", "require"),
    ):
        first = node.args[0] if node.args else None
        return [first.value] if isinstance(first, ast.Constant) and isinstance(first.value, str) else []
    return []


def test_what_is_imported_is_declared_and_nothing_else() -> None:
    found = imported()
    needed = {DISTRIBUTIONS.get(name, name).lower() for name in found if name not in OPTIONAL}
    assert names(project()["project"]["dependencies"]) == needed
    extras = project()["project"]["optional-dependencies"]
    for name in OPTIONAL.keys() & found.keys():
        assert DISTRIBUTIONS.get(name, name) in names(extras[OPTIONAL[name]])
    assert found["torchvision"] and found["nvidia"], "the walk sees imports by name"


def test_what_the_tests_run_with_is_what_is_allowed() -> None:
    """Each dependency is pinned in constraints.txt, and torch is bounded where a release may break the libraries."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = names([line for line in lines if line and not line.startswith("#")])
    assert names(project()["project"]["dependencies"]) <= pinned
    assert "torch>=2.11,<3" in project()["project"]["dependencies"]


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The files of a source distribution."""
    folder = tmp_path_factory.mktemp("egg")
    command = [sys.executable, "setup.py", "--quiet", "egg_info", "--egg-base", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, env={**os.environ, "SFTN_CUDA": "0"})
    (listing,) = folder.glob("*.egg-info/SOURCES.txt")
    return set(listing.read_text().splitlines())


def test_a_source_distribution_has_all_that_is_compiled(packed: set[str]) -> None:
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob("*") if path.is_file()}
    assert sources <= packed and any(name.endswith(".cuh") for name in sources)
    for name in sources:
        if Path(name).suffix in (".cpp", ".cu", ".h", ".cuh"):
            for header in re.findall(r'^#include "([^"]+)"', (ROOT / name).read_text(), re.MULTILINE):
                path = os.path.normpath(Path(name).parent / header)
                assert path in packed or header.startswith("torch/"), f"{name} includes {header}"


def test_a_source_distribution_has_the_package_and_no_more(packed: set[str]) -> None:
    package = {
        str(path.relative_to(ROOT))
        for pattern in ("*.py", "*.yaml", "*.j2", "py.typed")
        for path in PACKAGE.rglob(pattern)
    }
    assert package <= packed
    assert {"setup.py", "pyproject.toml", "README.md", "SECURITY.md", "LICENSE", "constraints.txt"} <= packed
    assert not [name for name in packed if name.startswith(("tests/", "bench/", "runs/", ".")) or name.endswith(".so")]


def test_a_wheel_has_every_file_of_the_package_that_is_not_a_module() -> None:
    patterns = project()["tool"]["setuptools"]["package-data"]["sftn_fast"]
    declared = {path for pattern in patterns for path in PACKAGE.glob(pattern)}
    data = {path for path in PACKAGE.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc", ".so")}
    assert data == declared and {path.name for path in data} >= {"demo.yaml", "page.html.j2", "py.typed"}


@pytest.fixture(scope="module")
def setup_py() -> ModuleType:
    spec = importlib.util.spec_from_file_location("setup_py_packaging", ROOT / "setup.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("symbols", "tag"),
    [
        ([b"GLIBC_2.2.5 GLIBC_2.34 GLIBCXX_3.4.21"], "manylinux_2_34_x86_64"),
        ([b"GLIBC_2.14 GLIBCXX_3.4.9"], "manylinux_2_17_x86_64"),
        ([b"GLIBC_2.17", b"GLIBC_2.32"], "manylinux_2_34_x86_64"),
        ([b"GLIBC_2.28 GLIBCXX_3.4.29"], "manylinux_2_34_x86_64"),
        ([b"GLIBC_2.28 GLIBCXX_3.4.24"], "manylinux_2_28_x86_64"),
        ([b"GLIBC_2.99"], "linux_x86_64"),
        ([b"GLIBCXX_3.4.99"], "linux_x86_64"),
        ([], "linux_x86_64"),
    ],
)
def test_the_tag_is_the_oldest_linux_that_has_the_symbols(
    symbols: list[bytes], tag: str, setup_py: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(setup_py.platform_module, "libc_ver", lambda: ("glibc", "2.36"))
    assert setup_py.manylinux(symbols, "linux_x86_64") == tag
    for other in ("macosx_14_0_arm64", "win_amd64"):
        assert setup_py.manylinux(symbols, other) == other
    monkeypatch.setattr(setup_py.platform_module, "libc_ver", lambda: ("", ""))
    assert setup_py.manylinux(symbols, "linux_x86_64") == "linux_x86_64"


def test_messages_in_a_library_name_no_folder_of_this_machine(setup_py: ModuleType, tmp_path: Path) -> None:
    """By the preprocessor, which is what writes a file's name into a message."""
    source = tmp_path / "csrc" / "a.cpp"
    source.parent.mkdir()
    source.write_text("__FILE__\n")
    setup_py.ROOT = tmp_path
    command = [os.environ.get("CXX", "c++"), "-E", "-P", *setup_py.without_paths(), str(source)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except FileNotFoundError:
        pytest.skip("no C++ compiler")
    finally:
        setup_py.ROOT = ROOT
    assert done.stdout.strip() == '"csrc/a.cpp"'
