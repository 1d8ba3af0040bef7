"""The switch between compiled kernels and plain PyTorch: a default for the process and a choice for each context."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch.torch_version import TorchVersion

from sftn_fast.ops import _library

BACKENDS = ("auto", "fused", "reference")


class _Block:
    """A ``with backend(name):`` block that was entered."""

    def __init__(self, name: str) -> None:
        self.name = name


_default = "auto"
_entered: ContextVar[tuple[_Block, ...]] = ContextVar("entered", default=())
_chosen: ContextVar[str | None] = ContextVar("chosen", default=None)  # name of the last block in `_entered`

# The latest choice of any context. Compilers before torch 2.14 can't read a context variable, so they read this.
_latest = _default
_COMPILERS_READ_CONTEXTS = TorchVersion(torch.__version__) >= "2.14"

_warned: set[str] = set()
_kernels: dict[str, Any] = {}


def find_kernels() -> None:
    """Use the libraries that loaded and have every op. Call this once all ops are registered."""
    for device, library in (("cpu", _library.CPU), ("cuda", _library.CUDA)):
        if library.loaded:
            _kernels[device] = torch.ops.sftn_fast


def set_backend(name: str) -> None:
    """Set the process-wide backend of the losses, for all threads, outside any ``with backend(...):`` block.

    ``"fused"`` runs the compiled kernels and raises where there are none. ``"reference"`` runs plain PyTorch.
    ``"auto"``, the default, runs the kernels where they exist and otherwise plain PyTorch, with one warning.

    Raises:
        ValueError: for any other name.
    """
    global _default, _latest
    _check(name)
    _default = _latest = name


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Run the losses called inside ``with backend(name):`` on ``name``; see :func:`set_backend`.

    The choice holds for this thread or asyncio task, and for tasks started inside the block. Blocks may overlap, as
    those of generators do: the block entered last wins until it is left.
    """
    _check(name)
    block = _Block(name)
    _enter((*_entered.get(), block))
    try:
        yield
    finally:
        _enter(tuple(other for other in _entered.get() if other is not block))


def _enter(blocks: tuple[_Block, ...]) -> None:
    global _latest
    _entered.set(blocks)
    _chosen.set(blocks[-1].name if blocks else None)
    _latest = current()


def _check(name: str) -> None:
    if name not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(map(repr, BACKENDS))}, got {name!r}")


def current() -> str:
    """Return the backend chosen in this context."""
    return _chosen.get() or _default


def _current() -> str:
    if _COMPILERS_READ_CONTEXTS or not torch.compiler.is_compiling():
        return current()
    return _latest


def kernels(device_type: str) -> Any | None:
    """Return the namespace of the raw ops to use on a device, or None for the reference."""
    name = _current()
    if name == "reference":
        return None
    namespace = _kernels.get(device_type)
    if namespace is None:
        _without_kernels(device_type, name)
    return namespace


def why_not(device_type: str) -> str:
    """Return the reason why a device has no kernels."""
    library = {"cpu": _library.CPU, "cuda": _library.CUDA}.get(device_type)
    return library.error or "none registered" if library else "there are kernels for cpu and cuda only"


def _without_kernels(device_type: str, name: str) -> None:
    reason = f"no compiled kernels for device {device_type!r} ({why_not(device_type)})"
    if name == "fused":
        raise RuntimeError(f"backend 'fused': {reason}")
    if device_type not in _warned:
        _warned.add(device_type)
        warnings.warn(f"sftn_fast: {reason}; its losses run as plain PyTorch, slower", stacklevel=4)


@contextmanager
def _use_namespace(device_type: str, namespace: Any | None) -> Iterator[None]:
    """Replace a device's kernels by another namespace, or by none. For tests."""
    before = _kernels.get(device_type)
    _kernels[device_type] = namespace
    try:
        yield
    finally:
        _kernels[device_type] = before
