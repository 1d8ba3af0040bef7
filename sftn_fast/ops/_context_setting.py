"""A setting with a default for the process and a value for each context: a thread or an asyncio task."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Generic, TypeVar

import torch
from torch.torch_version import TorchVersion

T = TypeVar("T")

# Compilers before torch 2.14 can't read a context variable, so they read the latest value of any context.
_COMPILERS_READ_CONTEXTS = TorchVersion(torch.__version__) >= "2.14"


class _Block(Generic[T]):
    """A ``with`` block that was entered."""

    def __init__(self, value: T) -> None:
        self.value = value


class ContextSetting(Generic[T]):
    """A value that :meth:`set` changes for the process and :meth:`block` inside a ``with`` block of one context.

    Blocks may overlap, as those of generators do: the block entered last wins until it is left.
    """

    def __init__(self, name: str, default: T) -> None:
        self.default = default
        self._latest = default
        self._entered: ContextVar[tuple[_Block[T], ...]] = ContextVar(f"{name}_entered", default=())
        self._chosen: ContextVar[T | None] = ContextVar(f"{name}_chosen", default=None)  # of the last block

    def set(self, value: T) -> None:
        """Set the value outside any block, for all threads."""
        self.default = self._latest = value

    @contextmanager
    def block(self, value: T) -> Iterator[None]:
        """Use ``value`` inside the ``with`` block."""
        block = _Block(value)
        self._enter((*self._entered.get(), block))
        try:
            yield
        finally:
            self._enter(tuple(other for other in self._entered.get() if other is not block))

    def _enter(self, blocks: tuple[_Block[T], ...]) -> None:
        self._entered.set(blocks)
        self._chosen.set(blocks[-1].value if blocks else None)
        self._latest = self.get()

    def get(self) -> T:
        """Return the value in this context."""
        if not _COMPILERS_READ_CONTEXTS and torch.compiler.is_compiling():
            return self._latest
        value = self._chosen.get()
        return self.default if value is None else value
