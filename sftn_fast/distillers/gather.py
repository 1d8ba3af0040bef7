"""The whole batch of a step that several processes share, with gradients to one's own part of it.

Works in any loop that averages gradients over the processes of the default group, as DistributedDataParallel does.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def ranks() -> int:
    """Number of processes that share a step."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def whole_batch(own: Tensor) -> Tensor:
    """The rows of all ranks ``[ranks * N, ...]`` by rank, from one's own ``[N, ...]``, as many on each rank.

    A loss of the result is the same on each rank, and its gradient reaches one's own rows, multiplied by the number of
    ranks: averaged over the ranks the parameters' gradients are then those of one process with the whole batch.
    """
    return own if ranks() == 1 else _WholeBatch.apply(own)


class _WholeBatch(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:  # type: ignore[override]
        ctx.rows = len(own)
        own = own.contiguous()
        parts = [torch.empty_like(own) for _ in range(ranks())]
        dist.all_gather(parts, own)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        first = dist.get_rank() * ctx.rows
        return grad[first : first + ctx.rows] * ranks()
