"""One task on several ranks, each with a share of the batch and all with the same weights."""

from __future__ import annotations

import contextlib
import inspect
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from sftn_fast.config import check
from sftn_fast.engine import distributed

# torch 2.14 has another name for it, and warns of the former.
_SYNC_BUFFERS = next(
    name
    for name in ("forward_sync_buffers", "broadcast_buffers")
    if name in inspect.signature(DistributedDataParallel).parameters
)


def synchronise_batchnorm(task: nn.Module, device: torch.device) -> None:
    """Let the BatchNorms in ``task`` take their statistics from the batches of all ranks; nothing to do at one rank.

    Raises:
        ConfigError: ``device`` is the CPU, for which PyTorch has no such layer.
    """
    if distributed.world_size() > 1:
        check(device.type != "cpu", "engine.sync_batchnorm", True, "false on the CPU")
        nn.SyncBatchNorm.convert_sync_batchnorm(task)


def wrap(task: nn.Module) -> nn.Module:
    """``task`` with its gradients averaged over the ranks in the backward pass; the task itself at one rank.

    Every rank begins with the main rank's weights and buffers. Every parameter that requires grad has to get one in
    every step, on all ranks: what a task does not use at the time it freezes, so that nobody has to search the graph
    for it. Buffers go their own ways, see :func:`~sftn_fast.engine.distributed.share_buffers`.
    """
    if distributed.world_size() == 1:
        return task
    distributed.share_buffers(task)
    options: dict[str, Any] = {_SYNC_BUFFERS: False}
    return DistributedDataParallel(task, **options)


def apart(task: nn.Module, *, until_last: bool) -> contextlib.AbstractContextManager[None]:
    """Context in which the gradients of a wrapped ``task`` stay on their ranks, if more are to come in this step."""
    if until_last and isinstance(task, DistributedDataParallel):
        return task.no_sync()
    return contextlib.nullcontext()
