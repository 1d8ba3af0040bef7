"""Cases of the raw pooling ops on the emulated device, compared with PyTorch's in float64. Imports no kernels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Case:
    """One call. ``offset`` elements before the map spoil its alignment."""

    n: int = 2
    channels: int = 5
    size: tuple[int, int] = (8, 6)
    out: tuple[int, int] = (4, 3)
    dtype: torch.dtype = torch.float32
    channels_last: bool = False
    offset: int = 0

    def __str__(self) -> str:
        default = Case()
        named = {k: v for k, v in vars(self).items() if v != getattr(default, k)}
        return ",".join(f"{k}={str(v).removeprefix('torch.')}" for k, v in named.items()) or "default"

    def map(self, size: tuple[int, int], dtype: torch.dtype) -> Tensor:
        """Make reproducible values at the end of their allocation."""
        generator = torch.Generator().manual_seed(size[0])
        values = torch.randn(self.n, self.channels, *size, generator=generator, dtype=torch.float64)
        values = values.permute(0, 2, 3, 1) if self.channels_last else values
        dense = torch.zeros(self.offset + values.numel(), dtype=dtype)[self.offset :].view(values.shape).copy_(values)
        return dense.permute(0, 3, 1, 2) if self.channels_last else dense


def run_case(case: Case) -> None:
    """Run the emulated kernels forward and backward. AssertionError where they differ from float64."""
    ops = torch.ops.sftn_fast_emulated
    accumulator = torch.float64 if case.dtype == torch.float64 else torch.float32
    features, upstream = case.map(case.size, case.dtype), case.map(case.out, accumulator)
    pooled = ops.features_pool_forward(features, *case.out)
    grad = ops.features_pool_backward(upstream, features)

    leaf = features.detach().double().requires_grad_()
    right = F.adaptive_avg_pool2d(leaf, case.out)
    (right_grad,) = torch.autograd.grad(right, leaf, upstream.double())
    exact = 1e-14 if accumulator == torch.float64 else 1e-6
    stored = {torch.float16: 1e-3, torch.bfloat16: 8e-3}.get(case.dtype, exact)
    assert pooled.dtype == accumulator
    assert grad.dtype == case.dtype
    assert grad.stride() == features.stride()
    torch.testing.assert_close(pooled.double(), right.detach(), rtol=0, atol=exact)
    torch.testing.assert_close(grad.double(), right_grad, rtol=stored, atol=exact)


SIZES = (
    ((8, 6), (4, 3)),
    ((7, 5), (3, 4)),
    ((9, 2), (9, 1)),
    ((16, 16), (1, 1)),
    ((5, 4), (5, 4)),
    ((12, 40), (3, 10)),
)

# Each line differs from the default in what it tests.
CASES = [
    *(
        Case(size=size, out=out, dtype=dtype, channels_last=last)
        for size, out in SIZES
        for dtype in (torch.float32, torch.bfloat16)
        for last in (False, True)
    ),
    *(Case(dtype=dtype, channels_last=last) for dtype in (torch.float16, torch.float64) for last in (False, True)),
    Case(offset=1),
    Case(offset=1, channels_last=True, dtype=torch.float16),
    Case(n=9, channels=40, channels_last=True),  # more than a block of results
    Case(n=9, channels=40, size=(7, 7), out=(3, 3)),
    Case(n=1, channels=1, size=(1, 1), out=(1, 1)),
]
