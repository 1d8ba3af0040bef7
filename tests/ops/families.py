"""Helpers of the tests of single families: dtypes, layouts, threads, refusals. `every_op.py` has those of all ops."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor

from sftn_fast.ops import _library

FAKES = ("test_schema", "test_autograd_registration", "test_faketensor")
"""What opcheck checks by one call: how an op depends on options, dtypes and layouts. `test_compile.py` traces each op,
which takes ten times as long and is the same for all of them."""

S = TypeVar("S")
T = TypeVar("T")

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
ids = {"ids": lambda value: str(value).removeprefix("torch.")}
needs_kernels = pytest.mark.skipif(not _library.CPU.loaded, reason=f"no CPU kernels: {_library.CPU.error}")


def shapes_for(backend: Any, shapes: list[S]) -> list[S]:
    """Return every shape for kernels, and every third for plain PyTorch, which has one path for all sizes."""
    return shapes if backend.fused else shapes[::3]


def accumulator(*dtypes: torch.dtype) -> torch.dtype:
    """Return the dtype of a loss of inputs of these dtypes."""
    return torch.float64 if torch.float64 in dtypes else torch.float32


def wave(shape: tuple[int, ...], step: float, start: float = 0.0, function: Callable = torch.sin) -> Tensor:
    """Return the float64 inputs for which the authors' code gave the golden values."""
    return function(torch.arange(math.prod(shape), dtype=torch.float64) * step + start).reshape(shape)


def channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def offset(x: Tensor) -> Tensor:
    """Return the same values, one element into an allocation."""
    return torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape)


MAP_LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "batch slice": lambda x: x.repeat_interleave(2, 0)[::2],
    "channel slice": lambda x: torch.cat([x, x], 1)[:, 2 : 2 + x.shape[1]],
    "pixel step": lambda x: x.repeat_interleave(2, 3)[..., ::2],
    "offset": offset,
    "offset, channels last": lambda x: offset(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2),
    "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "expanded": lambda x: x[:1].expand(x.shape),
    "channels last": channels_last,
}
"""Changes of layout of maps ``[N, C, H, W]``. All but "expanded" keep the values."""


def on_threads(call: Callable[[], T]) -> list[T]:
    """Return the results of a call on 1, 2 and 5 threads."""
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            results.append(call())
    finally:
        torch.set_num_threads(threads)
    return results


def refusals(error: type[Exception], table: dict[str, tuple[Callable[[], object], str]]) -> Callable[..., None]:
    """Build a test of a table's calls: each must raise ``error`` with a message that matches its pattern."""

    @pytest.mark.parametrize(("call", "message"), table.values(), ids=table.keys())
    def test(call: Callable[[], object], message: str) -> None:
        with pytest.raises(error, match=message):
            call()

    return test
