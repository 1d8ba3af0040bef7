"""The switch between compiled kernels and plain PyTorch: a default for the process and a choice for each context."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch

from sftn_fast.ops import _library
from sftn_fast.ops._context_setting import ContextSetting

BACKENDS = ("auto", "fused", "reference")

_setting = ContextSetting("backend", "auto")
_warned: set[str] = set()
_kernels: dict[str, Any] = {}
_OWN = torch.ops.sftn_fast


def find_kernels() -> None:
    """Use the libraries that loaded and have every op. Call this once all ops are registered."""
    for device, library in (("cpu", _library.CPU), ("cuda", _library.CUDA)):
        if library.loaded:
            _kernels[device] = _OWN


def set_backend(name: str) -> None:
    """Set the process-wide backend of the losses, for all threads, outside any ``with backend(...):`` block.

    ``"fused"`` runs the compiled kernels and raises where there are none. ``"reference"`` runs plain PyTorch.
    ``"auto"``, the default, runs the kernels where they exist and otherwise plain PyTorch, with one warning.

    Raises:
        ValueError: for any other name.
    """
    _check(name)
    _setting.set(name)


def backend(name: str) -> AbstractContextManager[None]:
    """Run the losses called inside ``with backend(name):`` on ``name``; see :func:`set_backend`.

    The choice holds for this thread or asyncio task, and for tasks started inside the block. Blocks may overlap, as
    those of generators do: the block entered last wins until it is left.
    """
    _check(name)
    return _setting.block(name)


def _check(name: str) -> None:
    if name not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(map(repr, BACKENDS))}, got {name!r}")


def current() -> str:
    """Return the backend chosen in this context."""
    return _setting.get()


def kernels(device_type: str) -> Any | None:
    """Return the namespace of the raw ops to use on a device, or None for the reference."""
    name = _setting.get()
    if name == "reference":
        return None
    namespace = _kernels.get(device_type)
    if namespace is None:
        _without_kernels(device_type, name)
    return namespace


def runs_cpu_kernels() -> bool:
    """Return whether losses on the CPU run the compiled kernels in this context."""
    return _kernels.get("cpu") is _OWN and _setting.get() != "reference"


def why_not(device_type: str) -> str:
    """Return the reason why a device has no kernels."""
    library = {"cpu": _library.CPU, "cuda": _library.CUDA}.get(device_type)
    return library.error or "none registered" if library else "there are kernels for cpu and cuda only"


def _without_kernels(device_type: str, name: str) -> None:
    """Raise for the backend ``"fused"``, else warn once of each reason."""
    reason = f"no compiled kernels for device {device_type!r} ({why_not(device_type)})"
    if name == "fused":
        raise RuntimeError(f"backend 'fused': {reason}")
    if reason not in _warned:
        _warned.add(reason)
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
