"""The switch between the compiled kernels and plain PyTorch. Process-wide, not a thread's own."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from sftn_fast.ops import _library

BACKENDS = ("auto", "fused", "reference")

_backend = "auto"
_warned: set[str] = set()
_kernels: dict[str, Any] = {}


def find_kernels() -> None:
    """Take the libraries that loaded and have every op; to be called once all ops are registered."""
    for device, library in (("cpu", _library.CPU), ("cuda", _library.CUDA)):
        if library.loaded:
            _kernels[device] = torch.ops.sftn_fast


def set_backend(name: str) -> None:
    """Choose what the losses run on, from here on and in all threads.

    ``"fused"`` is the compiled kernels, and an error where there are none; ``"reference"`` is plain PyTorch;
    ``"auto"``, the default, takes the kernels where there are some and warns once where there are none.

    Raises:
        ValueError: for any other name.
    """
    global _backend
    if name not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(map(repr, BACKENDS))}, got {name!r}")
    _backend = name


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Run the losses called inside ``with backend(name):`` on ``name``; see :func:`set_backend`."""
    before = _backend
    set_backend(name)
    try:
        yield
    finally:
        set_backend(before)


def kernels(device_type: str) -> Any | None:
    """The namespace of the raw ops to use on a device, None for the reference."""
    if _backend == "reference":
        return None
    namespace = _kernels.get(device_type)
    if namespace is None:
        _without_kernels(device_type)
    return namespace


def why_not(device_type: str) -> str:
    """Why a device has no kernels."""
    library = {"cpu": _library.CPU, "cuda": _library.CUDA}.get(device_type)
    return library.error or "none registered" if library else "there are kernels for cpu and cuda only"


def _without_kernels(device_type: str) -> None:
    reason = f"no compiled kernels for device {device_type!r} ({why_not(device_type)})"
    if _backend == "fused":
        raise RuntimeError(f"backend 'fused': {reason}")
    if device_type not in _warned:
        _warned.add(device_type)
        warnings.warn(f"sftn_fast: {reason}; its losses run as plain PyTorch, slower", stacklevel=4)


@contextmanager
def _use_namespace(device_type: str, namespace: Any | None) -> Iterator[None]:
    """Have a device's kernels come from another namespace, or from none. For tests."""
    before = _kernels.get(device_type)
    _kernels[device_type] = namespace
    try:
        yield
    finally:
        _kernels[device_type] = before
