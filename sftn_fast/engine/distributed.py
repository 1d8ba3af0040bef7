"""Which process this is among how many, and the few exchanges between them that the engine needs.

Every exchange is a no-op at one rank, so the loop is written once.
"""

from __future__ import annotations

import os
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def _initialised() -> bool:
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """This process's number: the process group's, else the launcher's ``RANK``, else 0."""
    return dist.get_rank() if _initialised() else int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Number of processes: the process group's, else the launcher's ``WORLD_SIZE``, else 1."""
    return dist.get_world_size() if _initialised() else int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """Whether this is the process that prints and writes files."""
    return rank() == 0


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


def any_rank(flag: bool, device: torch.device) -> bool:
    """Whether ``flag`` is set on any rank. Over several ranks this waits for the device."""
    if world_size() == 1:
        return flag
    return bool(all_max(torch.tensor(float(flag), device=device)))


def gather(value: Any) -> list[Any]:
    """Every rank's ``value`` (picklable), by rank."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values
