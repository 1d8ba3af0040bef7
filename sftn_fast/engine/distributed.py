"""Rank, number of ranks, and the few exchanges between ranks that the engine needs.

Every exchange is a no-op at one rank, so the loop is written once. Tensors are sent by the library of their device.
Numbers, flags and objects are sent by the host's library, so that they don't wait for a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sftn_fast.utils import launcher
from sftn_fast.utils.text import escape

T = TypeVar("T")


class PeerError(RuntimeError):
    """Another rank failed. That rank reports the reason."""


def _initialised() -> bool:
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """Return the rank of this process: the process group's, else the launcher's ``RANK``, else 0."""
    return dist.get_rank() if _initialised() else launcher.rank()


def world_size() -> int:
    """Return the number of processes: the process group's, else the launcher's ``WORLD_SIZE``, else 1."""
    return dist.get_world_size() if _initialised() else launcher.world_size()


def is_main() -> bool:
    """Return whether this is the process that prints and writes files."""
    return rank() == 0


def say(text: str) -> None:
    """Print ``text``, of one line or several, on the main rank only."""
    if is_main():
        print("\n".join(map(escape, text.split("\n"))), flush=True)


def all_sum(value: Tensor) -> Tensor:
    """Sum ``value`` over all ranks in place, and return it."""
    if world_size() > 1:
        dist.all_reduce(value, op=dist.ReduceOp.SUM)
    return value


def all_max(value: Tensor) -> Tensor:
    """Take the maximum of ``value`` over all ranks in place, and return it."""
    if world_size() > 1:
        dist.all_reduce(value, op=dist.ReduceOp.MAX)
    return value


def largest(number: int) -> int:
    """Return the largest ``number`` of all ranks."""
    return int(all_max(torch.tensor(number)))


def gather(value: T) -> list[T]:
    """Return every rank's ``value``, which must be picklable, by rank."""
    if world_size() == 1:
        return [value]
    values: list[T | None] = [None] * world_size()
    dist.all_gather_object(values, value)
    return cast(list[T], values)


def on_every_rank(call: Callable[[], T]) -> T:
    """Return this rank's ``call()`` after it has ended on every rank.

    Raises:
        PeerError: it failed on another rank. If several fail, only the first raises its own error.
    """
    if world_size() == 1:
        return call()
    result, error = None, None
    try:
        result = call()
    except Exception as failure:
        error = failure
    failed = [number for number, bad in enumerate(gather(error is not None)) if bad]
    if failed and failed[0] != rank():
        raise PeerError(f"rank {failed[0]} failed")
    if error is not None:
        raise error
    return cast(T, result)


def on_main(call: Callable[[], T]) -> T:
    """Return on every rank what ``call()`` returns on the main rank, which must be picklable. The others wait.

    Raises:
        PeerError: it failed, on the other ranks.
    """
    result = on_every_rank(call if is_main() else lambda: cast(T, None))
    if world_size() == 1:
        return result
    shared = [result]
    dist.broadcast_object_list(shared, src=0)
    return shared[0]


@torch.no_grad()
def share_buffers(module: nn.Module) -> None:
    """Copy the main rank's buffers to every rank.

    Each rank has collected BatchNorm statistics from its own images. A checkpoint holds the main rank's too.
    """
    if world_size() == 1:
        return
    groups: dict[torch.dtype, list[Tensor]] = {}
    for buffer in module.buffers():
        groups.setdefault(buffer.dtype, []).append(buffer)
    # One message for each dtype: a network has hundreds of buffers of a few bytes.
    for buffers in groups.values():
        flat = torch.cat([buffer.flatten() for buffer in buffers])
        dist.broadcast(flat, src=0)
        for buffer, part in zip(buffers, flat.split([buffer.numel() for buffer in buffers]), strict=True):
            buffer.copy_(part.view_as(buffer))
