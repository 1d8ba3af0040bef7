"""Checks of the arguments of KD, KD with cross-entropy and SFTN that other losses on logits don't have."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sftn_fast.ops import validation as check
from sftn_fast.ops._autograd import is_readable


def check_logits(name: str, logits: Any) -> None:
    """Raise unless the logits are a floating-point ``[N, C]`` or ``[N, C, d1, ...]`` with at least one class."""
    check.check_floating(name, logits)
    if logits.dim() < 2 or logits.shape[1] == 0:
        raise ValueError(f"{name} must be [N, C] or [N, C, d1, ...] with C at least 1, got {list(logits.shape)}")


def check_target(target: Any, logits: Tensor, ignore_index: int = -100) -> None:
    """Raise unless the target is an int64 ``[N]`` or a floating-point ``[N, C]`` for logits ``[N, C]``.

    For logits ``[N, C, d1, ...]`` it is an int64 ``[N, d1, ...]`` or has their shape. The kernels check the values of
    classes.
    """
    check.check_tensor("target", target)
    if target.dtype is not torch.int64:
        _check_probabilities(target, logits, ignore_index)
    elif target.dim() != logits.dim() - 1 or target.shape[0] != logits.shape[0] or target.shape[1:] != logits.shape[2:]:
        name, shape = _letters(logits).replace(", C", ""), [logits.shape[0], *logits.shape[2:]]
        hint = f"; probabilities {_letters(logits)} must be floating-point" if target.shape == logits.shape else ""
        raise ValueError(f"target must be {name} = {shape}, got {list(target.shape)}{hint}")
    check.check_same_device("target", target, "the logits", logits)


def _check_probabilities(target: Tensor, logits: Tensor, ignore_index: int) -> None:
    if target.dtype not in check.FLOATING:
        raise TypeError(f"target must be int64 class indices or floating-point probabilities, got {target.dtype}")
    if target.shape != logits.shape:
        expected = f"{_letters(logits)} = {list(logits.shape)}"
        raise ValueError(f"target must be {expected} for probabilities, got {list(target.shape)}")
    if ignore_index >= 0:
        raise ValueError(
            "ignore_index must be negative beside a target of probabilities, which has no class to ignore, "
            f"got {ignore_index}"
        )


def _letters(logits: Tensor) -> str:
    return "[N, C]" if logits.dim() == 2 else "[N, C, d1, ...]"


def check_temperature_tensor(value: Tensor, logits: Tensor | None = None) -> None:
    """Raise unless the temperature is a floating-point 0-dim tensor, on the device of ``logits`` if given.

    Its value is read on the CPU only. On a GPU that would be a synchronisation.
    """
    check.check_tensor("temperature", value)
    if value.dtype not in check.FLOATING:
        raise TypeError(f"temperature must be a number or a floating-point tensor, got a tensor of {value.dtype}")
    if value.dim() != 0:
        raise ValueError(f"temperature must be a number or a 0-dim tensor, got a tensor of shape {list(value.shape)}")
    if logits is not None:
        check.check_same_device("temperature", value, "the logits", logits)
    traced = torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()
    if value.is_cpu and not traced and is_readable(value):
        check.check_temperature(value.item())
