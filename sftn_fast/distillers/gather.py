"""The whole batch of a step over several processes, with gradients to each process's own part.

Works in any loop that averages gradients over the processes of the default group, as DistributedDataParallel does.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


def ranks() -> int:
    """Return the number of processes that share a step."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def whole_batch(own: Tensor) -> Tensor:
    """Gather rows ``[N, ...]`` of each rank into ``[ranks * N, ...]``, in rank order; N must be equal on all ranks.

    A loss of the result is the same on each rank. Its gradient reaches a rank's own rows, multiplied by the number of
    ranks. Averaged over the ranks, the parameters' gradients are then those of one process with the whole batch.
    """
    return own if ranks() == 1 else _WholeBatch.apply(own)


def warn_if_not_averaged(student: nn.Module) -> None:
    """Warn if a step of several processes runs ``student`` outside of DistributedDataParallel.

    DistributedDataParallel averages the gradients of calls that go through it. Wrapped around the student alone, it
    does not see the calls that a distiller makes.
    """
    learns = torch.is_grad_enabled() and any(p.requires_grad for p in student.parameters())
    if ranks() == 1 or not learns or torch.compiler.is_compiling():
        return
    # PyTorch has no public function for this, and may remove this private one.
    active = getattr(DistributedDataParallel, "_get_active_ddp_module", None)
    sharded = any(hasattr(p, "device_mesh") for p in student.parameters())
    if active is not None and active() is None and not sharded:
        warnings.warn(
            f"the distiller runs its student on {ranks()} processes outside of DistributedDataParallel: unless the "
            "loop averages the gradients itself, the processes train different students. Wrap student and distiller as "
            "one module, DistillTask(student, distiller), and call that (docs/guide/own-loop.md)",
            stacklevel=4,
        )


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
