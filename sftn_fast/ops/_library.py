"""Loads the compiled libraries and remembers, for one that did not load, why.

``_C`` holds the schemas and the CPU kernels, ``_C_cuda`` the CUDA kernels. Either may be missing or broken: the package
imports all the same and the losses run on :mod:`sftn_fast.ops.reference`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

PACKAGE = Path(__file__).resolve().parent.parent
REBUILD = "`pip install --no-build-isolation -e .` in the source tree builds it"
F = TypeVar("F", bound=Callable)


@dataclass
class Library:
    """A compiled library: where it is, and why its ops can't be called, if they can't."""

    name: str
    path: Path | None
    error: str | None

    @property
    def loaded(self) -> bool:
        """Whether its ops can be called."""
        return self.error is None


def _load(name: str) -> Library:
    path = next((p for p in sorted(PACKAGE.glob(f"{name}.*")) if p.suffix in (".so", ".pyd", ".dylib")), None)
    if path is None:
        return Library(name, None, f"sftn_fast/{name}.so was not built; {REBUILD}")
    try:
        torch.ops.load_library(path)
    except Exception as error:  # a broken file, a missing symbol, a torch it was not built for: all end the same way
        cause = error.__cause__ or error  # the loader's own words, which torch wraps
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


def register_fake(op: str) -> Callable[[F], F]:
    """Decorator: the function gives the shapes and dtypes that ``torch.ops.sftn_fast.<op>`` returns, for compilers."""

    def register(function: F) -> F:
        if not CPU.loaded:
            return function
        if hasattr(torch.ops.sftn_fast, op):
            torch.library.register_fake(f"sftn_fast::{op}", function)
        else:  # as after the sources were brought up to date, and not the build
            CPU.error = CUDA.error = f"it is older than the package: it has no {op}; {REBUILD}"
        return function

    return register
