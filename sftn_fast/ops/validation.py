"""Checks of arguments. A valid argument costs a comparison.

Every message names the argument, the accepted values and the value it got. :func:`sftn_fast.ops.unchecked` turns them
off.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor

LEAST, MOST = 1e-30, 1e30
"""Bounds of a loss's scalars, so that float32 holds them and a few products with tensor values."""

FLOATING = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def alike(a: Any, b: Any) -> bool:
    """Return whether both are dense floating-point tensors of one shape, dtype and device: one look at valid ones."""
    return (
        isinstance(a, Tensor)
        and isinstance(b, Tensor)
        and a.dtype is b.dtype
        and a.layout is torch.strided
        and b.layout is torch.strided
        and not (a.is_nested or b.is_nested)
        and a.shape == b.shape
        and a.device == b.device
        and a.dtype in FLOATING
    )


def check_tensor(name: str, value: Any) -> None:
    """Raise unless the value is a dense tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")
    if value.layout is not torch.strided or value.is_nested:
        layout = "nested" if value.is_nested else str(value.layout).removeprefix("torch.").removeprefix("_")
        raise TypeError(f"{name} must be a dense tensor, got a tensor of layout {layout}")


def check_floating(name: str, value: Any) -> None:
    """Raise unless the value is a dense floating-point tensor."""
    if (
        not isinstance(value, Tensor)
        or value.dtype not in FLOATING
        or value.layout is not torch.strided
        or value.is_nested
    ):
        check_tensor(name, value)
        raise TypeError(f"{name} must be float16, bfloat16, float32 or float64, got {value.dtype}")


def check_logits(name: str, logits: Any) -> None:
    """Raise unless the logits are a floating-point ``[N, C]`` with at least one class."""
    check_floating(name, logits)
    if logits.dim() != 2 or logits.shape[1] == 0:
        raise ValueError(f"{name} must be [N, C] with C at least 1, got {list(logits.shape)}")


def check_logits_like(name: str, value: Any, other_name: str, other: Tensor) -> None:
    """Raise unless the logits have the shape and device of ``other``, logits that were checked."""
    if not alike(value, other):
        check_floating(name, value)
        check_like(name, value, other_name, other)


def check_logits_pair(name: str, value: Any, other_name: str, other: Any) -> None:
    """Raise unless both are logits ``[N, C]`` of one shape and device."""
    if alike(value, other) and value.dim() == 2 and value.shape[1] > 0:
        return
    check_logits(name, value)
    check_logits_like(other_name, other, name, value)


def check_map_pair(name: str, value: Any, other_name: str, other: Any) -> None:
    """Raise unless both are maps ``[N, C, ...]`` of one shape and device."""
    if alike(value, other) and value.dim() > 1 and value.shape[1] > 0:
        return
    check_map(name, value)
    check_map(other_name, other)
    check_like(other_name, other, name, value)


def check_embedding_pair(name: str, value: Any, other_name: str, other: Any) -> None:
    """Raise unless both are embeddings ``[B, D]`` with as many rows on one device; their widths may differ."""
    if alike(value, other) and value.dim() == 2 and value.shape[1] > 0:
        return
    check_embedding(name, value)
    check_embedding(other_name, other)
    check_same_batch(other_name, other, name, value)


def check_map(name: str, value: Any) -> None:
    """Raise unless the value is a floating-point ``[N, C, ...]`` with at least one channel."""
    check_floating(name, value)
    if value.dim() < 2 or value.shape[1] == 0:
        raise ValueError(f"{name} must be [N, C, ...] with C at least 1, got {list(value.shape)}")


def check_vector(name: str, value: Any) -> None:
    """Raise unless the value is a floating-point ``[C]``."""
    check_floating(name, value)
    if value.dim() != 1:
        raise ValueError(f"{name} must be [C], got {list(value.shape)}")


def check_channels(name: str, value: Any, map_name: str, features: Tensor) -> None:
    """Raise unless the value is a floating-point ``[C]`` for the channels of a map ``[N, C, ...]``."""
    check_vector(name, value)
    if value.shape[0] != features.shape[1]:
        raise ValueError(
            f"{name} must be [C] = [{features.shape[1]}], the channels of {map_name}, got {list(value.shape)}"
        )
    check_same_device(name, value, map_name, features)


def check_like(name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    """Raise unless the tensor has the shape and device of ``other``."""
    if value.shape != other.shape:
        raise ValueError(f"{name} must have the shape of {other_name}, {list(other.shape)}, got {list(value.shape)}")
    check_same_device(name, value, other_name, other)


def check_same_device(name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    """Raise unless the tensor is on the device of ``other``."""
    if value.device != other.device:
        raise ValueError(f"{name} must be on the device of {other_name}, {other.device}, got {value.device}")


def check_constant(name: str, value: Tensor) -> None:
    """Raise if the tensor requires a gradient, because the loss has none with respect to it."""
    if value.requires_grad and torch.is_grad_enabled():
        raise ValueError(
            f"{name} must not require a gradient: the loss has none with respect to it, got a tensor that does; "
            "detach it"
        )


def check_feature_map(name: str, features: Any) -> None:
    """Raise unless the features are a floating-point ``[N, C, H, W]`` with at least one channel and pixel."""
    check_floating(name, features)
    if features.dim() != 4 or 0 in features.shape[1:]:
        raise ValueError(f"{name} must be [N, C, H, W] with C, H and W at least 1, got {list(features.shape)}")


def check_batch(name: str, value: Any, *, dim: int | None = None) -> None:
    """Raise unless the value is a floating-point ``[B, ...]``, or ``[B, D]`` if ``dim`` is 2."""
    check_floating(name, value)
    if value.dim() != dim if dim else value.dim() < 2:
        raise ValueError(f"{name} must be {'[B, D]' if dim == 2 else '[B, ...]'}, got {list(value.shape)}")


def check_same_batch(name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    """Raise unless the batch has the size and device of ``other``."""
    if value.shape[0] != other.shape[0]:
        raise ValueError(
            f"{name} must have the batch size of {other_name}, {other.shape[0]}, got {value.shape[0]}: "
            f"{list(value.shape)}"
        )
    check_same_device(name, value, other_name, other)


def check_embedding(name: str, value: Any) -> None:
    """Raise unless the value is a floating-point ``[B, D]`` with D at least 1."""
    check_floating(name, value)
    if value.dim() != 2 or value.shape[1] == 0:
        raise ValueError(f"{name} must be [B, D] with D at least 1, got {list(value.shape)}")


def check_target(target: Any, logits: Tensor) -> None:
    """Raise unless the target is an int64 ``[N]`` for logits ``[N, C]``. The kernels check its values."""
    check_tensor("target", target)
    if target.dtype != torch.int64:
        raise TypeError(f"target must be int64 class indices, got {target.dtype}")
    if target.dim() != 1 or target.shape[0] != logits.shape[0]:
        raise ValueError(f"target must be [N] = [{logits.shape[0]}], got {list(target.shape)}")
    check_same_device("target", target, "the logits", logits)


def check_classes(target: Tensor, num_classes: int, ignore_index: int | None = None) -> None:
    """Raise if a class is out of range. Reading the classes synchronises with a GPU."""
    counted = target if ignore_index is None else target[target != ignore_index]
    wrong = counted[(counted < 0) | (counted >= num_classes)]
    if wrong.numel():
        allowed = f"classes from 0 to {num_classes - 1}"
        also = "" if ignore_index is None else f" or ignore_index ({ignore_index})"
        raise ValueError(f"target must hold {allowed}{also}, got {wrong[0].item()}")


def check_positive(name: str, value: Any, least: float = LEAST, most: float = MOST) -> None:
    """Raise unless the value is a finite number above zero that float32 can compute with."""
    if type(value) is not float:
        _check_number(name, value)
    if not 0 < value < math.inf:
        raise ValueError(f"{name} must be a finite number above 0, got {value}")
    if not least <= value <= most:
        raise ValueError(f"{name} must be from {least:g} to {most:g}, got {value}")


def check_temperature(value: Any, name: str = "temperature") -> None:
    """Raise unless the value is a temperature of logits. The losses compute with its square."""
    check_positive(name, value, 1e-12, 1e12)


def check_finite(name: str, value: Any, most: float = MOST) -> None:
    """Raise unless the value is a finite number that float32 can compute with."""
    if type(value) is not float:
        _check_number(name, value)
    if not -math.inf < value < math.inf:
        raise ValueError(f"{name} must be a finite number, got {value}")
    if not -most <= value <= most:
        raise ValueError(f"{name} must be from {-most:g} to {most:g}, got {value}")


def check_fraction(name: str, value: Any) -> None:
    """Raise unless the value is a number from 0 to 1."""
    if type(value) is not float:
        _check_number(name, value)
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must be from 0 to 1, got {value}")


def check_integer(name: str, value: Any) -> None:
    """Raise unless the value is an int."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    if not -(2**63) <= value < 2**63:
        raise ValueError(f"{name} must be an int of 64 bits, got {value}")


def check_flag(name: str, value: Any) -> None:
    """Raise unless the value is True or False; a string such as "no" would otherwise count as True."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {type(value).__name__}")


def check_count(name: str, value: Any) -> None:
    """Raise unless the value is an int of 0 or more."""
    check_integer(name, value)
    if value < 0:
        raise ValueError(f"{name} must be 0 or more, got {value}")


def check_size(name: str, value: Any) -> None:
    """Raise unless the value is a whole number of 1 or more, of any type that counts."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    if operator.index(value) < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")


def check_indices(name: str, value: Any, shape: str, *, size: int | None = None) -> None:
    """Raise unless the value is an int64 vector, of length ``size`` if given. ``shape`` describes it in the message."""
    check_tensor(name, value)
    if value.dtype != torch.int64:
        raise TypeError(f"{name} must be int64, got {value.dtype}")
    if value.dim() != 1 or (size is not None and value.shape[0] != size):
        raise ValueError(f"{name} must be {shape}, got {list(value.shape)}")


def check_generator(generator: Any, device: torch.device) -> None:
    """Raise unless the generator is on ``device``."""
    if not isinstance(generator, torch.Generator):
        raise TypeError(f"generator must be a torch.Generator or None, got {type(generator).__name__}")
    if generator.device != device:
        raise ValueError(f"generator must be on the device of the tensors, {device}, got {generator.device}")


def check_choice(name: str, value: Any, choices: Sequence[Any]) -> None:
    """Raise unless the value is one of ``choices``."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def _check_number(name: str, value: Any) -> None:
    if isinstance(value, Tensor) and value.requires_grad:
        raise TypeError(
            f"{name} must be a number: the loss has no gradient with respect to it, got a tensor that requires one"
        )
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    try:
        float(value)
    except OverflowError:
        raise ValueError(f"{name} must be a number that a float can hold, got {value}") from None
