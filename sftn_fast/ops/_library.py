"""The compiled libraries, and for a library that did not load the reason.

``_C`` holds the schemas and the CPU kernels, ``_C_cuda`` the CUDA kernels. If either is missing or broken, the package
still imports and the losses run on :mod:`sftn_fast.ops.reference`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

PACKAGE = Path(__file__).resolve().parent.parent
REBUILD = "`pip install --no-build-isolation -e .` in the source tree builds it"
PURE_PYTHON = "the kernels are for Linux and macOS, and this is Windows"
REBUILD_CUDA = "on a machine without a GPU, `SFTN_CUDA=1 pip install --no-build-isolation -e .` builds it"
F = TypeVar("F", bound=Callable)


@dataclass
class Library:
    """A compiled library: its path, and the error if its ops can't be called."""

    name: str
    path: Path | None
    error: str | None

    @property
    def loaded(self) -> bool:
        """Whether its ops can be called."""
        return self.error is None


def _load(name: str) -> Library:
    path = next((p for p in sorted(PACKAGE.glob(f"{name}.*")) if p.suffix in (".so", ".pyd", ".dylib")), None)
    if path is None and sys.platform == "win32":
        return Library(name, None, PURE_PYTHON)
    if path is None:
        rebuild = REBUILD_CUDA if name == "_C_cuda" and not torch.cuda.is_available() else REBUILD
        return Library(name, None, f"sftn_fast/{name}.so was not built; {rebuild}")
    try:
        torch.ops.load_library(path)
    except Exception as error:  # a broken file, a missing symbol or another torch: the outcome is the same
        cause = error.__cause__ or error  # the loader's own message, which torch wraps
        return Library(name, path, f"{type(cause).__name__}: {cause}")
    return Library(name, path, None)


def _load_cuda(cpu: Library) -> Library:
    if torch.version.cuda is None:
        return Library("_C_cuda", None, "this torch was built without CUDA")
    if not cpu.loaded:
        return Library("_C_cuda", None, "it needs _C, which is not loaded")
    return _load("_C_cuda")


CPU = _load("_C")
CUDA = _load_cuda(CPU)


def has(op: str) -> bool:
    """Return whether the CPU library has an op. A library that lacks one of the package's ops is called outdated."""
    if CPU.loaded and not hasattr(torch.ops.sftn_fast, op):  # the sources were updated without a rebuild
        CPU.error = CUDA.error = f"it is older than the package: it has no {op}; {REBUILD}"
    return CPU.loaded


def direct(op: str) -> Callable[..., Any]:
    """Return the function of an op that losses of a few thousand values call: its lookup would be a part of their cost.

    Without the library it is never called.
    """
    return getattr(torch.ops.sftn_fast, op).default._op if has(op) else _missing


def _missing(*_: Any) -> Any:
    raise RuntimeError("the library is not loaded")


def register_fake(op: str) -> Callable[[F], F]:
    """Register the decorated function as the fake of ``torch.ops.sftn_fast.<op>``, for compilers.

    The function returns tensors of the op's output shapes and dtypes.
    """

    def register(function: F) -> F:
        if has(op):
            torch.library.register_fake(f"sftn_fast::{op}", function)
        return function

    return register
