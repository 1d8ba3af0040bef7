"""Which process this is among how many, and the few exchanges between them that the engine needs.

Every exchange is a no-op at one rank, so the loop is written once. A tensor travels by the library of its device;
numbers, flags and objects by the host's, so that they wait for no GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sftn_fast.utils import launcher

T = TypeVar("T")


class PeerError(RuntimeError):
    """Another rank failed, and says itself why."""


def _initialised() -> bool:
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """This process's number: the process group's, else the launcher's ``RANK``, else 0."""
    return dist.get_rank() if _initialised() else launcher.rank()


def world_size() -> int:
    """Number of processes: the process group's, else the launcher's ``WORLD_SIZE``, else 1."""
    return dist.get_world_size() if _initialised() else launcher.world_size()


def is_main() -> bool:
    """Whether this is the process that prints and writes files."""
    return rank() == 0


def say(text: str) -> None:
    """Print ``text``, on the main rank alone."""
    if is_main():
        print(text, flush=True)


def all_sum(value: Tensor) -> Tensor:
    """Sum of ``value`` over all ranks, written into ``value``."""
    if world_size() > 1:
        dist.all_reduce(value, op=dist.ReduceOp.SUM)
    return value


def all_max(value: Tensor) -> Tensor:
    """Maximum of ``value`` over all ranks, written into ``value``."""
    if world_size() > 1:
        dist.all_reduce(value, op=dist.ReduceOp.MAX)
    return value


def largest(number: int) -> int:
    """The largest ``number`` of all ranks."""
    return int(all_max(torch.tensor(number)))


def gather(value: Any) -> list[Any]:
    """Every rank's ``value`` (picklable), by rank."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def on_every_rank(call: Callable[[], T]) -> T:
    """This rank's ``call()``, once every rank's has ended.

    Raises:
        PeerError: it failed elsewhere. Where several fail, the first of them alone says why.
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
    """What ``call()`` gives on the main rank (picklable), on every rank; the others wait for it.

    Raises:
        PeerError: on the others, if it failed.
    """
    result = on_every_rank(call if is_main() else lambda: cast(T, None))
    if world_size() == 1:
        return result
    shared = [result]
    dist.broadcast_object_list(shared, src=0)
    return shared[0]


@torch.no_grad()
def share_buffers(module: nn.Module) -> None:
    """Give every rank the main rank's buffers, as BatchNorm's statistics, which each has gathered from its own images.

    The main rank's are also those in a checkpoint.
    """
    if world_size() == 1:
        return
    groups: dict[torch.dtype, list[Tensor]] = {}
    for buffer in module.buffers():
        groups.setdefault(buffer.dtype, []).append(buffer)
    # One message a dtype: a network has hundreds of buffers of a few bytes.
    for buffers in groups.values():
        flat = torch.cat([buffer.flatten() for buffer in buffers])
        dist.broadcast(flat, src=0)
        for buffer, part in zip(buffers, flat.split([buffer.numel() for buffer in buffers]), strict=True):
            buffer.copy_(part.view_as(buffer))
