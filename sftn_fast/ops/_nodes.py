"""The autograd nodes in C++: the same as the autograd functions of the losses, for less time in Python.

Their library needs LibTorch's unstable API. It serves the version of torch and of Python that it was built for, and its
file is named after both, so that one of others is never loaded. It is built only from source. Without it, and wherever
Python must hear of a call (compilers, subclasses of tensors, modes, transforms), the autograd functions do the same.

As with PyTorch's own nodes, a hook of saved tensors that walks the same graph again waits for itself.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from sftn_fast.ops._autograd import NO_SECOND_DERIVATIVE
from sftn_fast.ops._library import CPU, PACKAGE, PURE_PYTHON, REBUILD, Library

NAME = "_nodes_cp{}{}{}_torch{}".format(*sys.version_info[:2], sys.abiflags, re.sub(r"\W", "_", torch.__version__))
"""Of the library's file; setup.py gives the same."""
INTERFACE = 2
"""Of the library's module, see ``csrc/autograd/module.cpp``."""


def _import(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"sftn_fast.{NAME}", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no module")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _load() -> tuple[ModuleType | None, Library]:
    if sys.platform == "win32":
        return None, Library(NAME, None, PURE_PYTHON)
    if not CPU.loaded:
        return None, Library(NAME, None, "they need _C, which is not loaded")
    path = PACKAGE / f"{NAME}.so"
    if not path.exists():
        return None, Library(NAME, None, f"sftn_fast/{NAME}.so was not built; {REBUILD}")
    try:
        module = _import(path)
        if module.interface != INTERFACE:
            return None, Library(NAME, path, f"it is of another version of the package; {REBUILD}")
        return module, Library(NAME, path, None)
    except Exception as error:  # a broken file, or one of a torch that calls itself the same
        return None, Library(NAME, path, f"{type(error).__name__}: {error}")


_module, LIBRARY = _load()
_is_compiling = torch.compiler.is_compiling


class Loss:
    """A loss as raw ops: the forward op's name, the backward op's, and what of the forward op may receive a gradient.

    A call takes the namespace of the ops and the forward op's arguments, without its flags. It returns the total, or a
    tuple of the total and what else is not for the backward pass, all without a gradient. Without a backward op, the
    forward op leaves the gradients. ``csrc/autograd/plan.h`` has the details.

    A call returns None if an autograd function in Python must do it.

    Args:
        num_returned: number of the forward op's results that a call returns, if there is a backward op.
    """

    def __init__(self, forward: str, backward: str | None, inputs: Sequence[str], num_returned: int = 1) -> None:
        self._ops = forward, backward
        self._rest = list(inputs), num_returned, NO_SECOND_DERIVATIVE
        self._of: dict[Any, Any] = {}

    def __call__(self, ops: Any, *arguments: Any) -> Any:
        if _module is None or _is_compiling():
            return None
        return (self._of.get(ops) or self._node(ops))(*arguments)

    def attempt(self, ops: Any, *arguments: Any) -> Any:
        """Do the same, and return NotImplemented if the op refuses its arguments."""
        if _module is None or _is_compiling():
            return None
        return (self._of.get(ops) or self._node(ops)).attempt(*arguments)

    def _node(self, ops: Any) -> Any:
        assert _module is not None
        forward, backward = (name and f"{ops.name}::{name}" for name in self._ops)
        node = self._of[ops] = _module.Loss(forward, backward, *self._rest)
        return node


@contextmanager
def in_python() -> Iterator[None]:
    """Leave all losses to the autograd functions in Python. For tests and measurements."""
    global _module
    before, _module = _module, None
    try:
        yield
    finally:
        _module = before
