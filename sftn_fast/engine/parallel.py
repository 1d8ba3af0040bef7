"""One task on several ranks, each with a share of the batch and all with the same weights."""

from __future__ import annotations

import contextlib
import inspect
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from sftn_fast.config import check
from sftn_fast.engine import distributed
from sftn_fast.engine.device import Layout
from sftn_fast.engine.rehearsal import rehearsal

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


def wrap(task: nn.Module, *, find_unused: bool = False) -> nn.Module:
    """``task`` with its gradients averaged over the ranks in the backward pass; the task itself at one rank.

    Every rank begins with the main rank's weights and buffers. With ``find_unused`` the graph of each step is searched
    for parameters that get no gradient in it; without, every parameter that requires grad has to get one. Buffers go
    their own ways, see :func:`~sftn_fast.engine.distributed.share_buffers`.
    """
    if distributed.world_size() == 1:
        return task
    distributed.share_buffers(task)
    options: dict[str, Any] = {_SYNC_BUFFERS: False, "find_unused_parameters": find_unused}
    return DistributedDataParallel(task, **options)


def leaves_some_unused(task: nn.Module, batch: Any, layout: Layout) -> bool:
    """Whether a step on ``batch`` gives some parameter of ``task`` no gradient, on any of the ranks.

    The step leaves no trace. All ranks have to call this.
    """
    task.train()
    tensors = layout.images(batch.images), layout.indices(batch.target), layout.indices(batch.index)
    learning = [p for p in task.parameters() if p.requires_grad]
    no_scaler = torch.amp.GradScaler(layout.device.type, enabled=False)
    with _same_attributes(task), rehearsal(list(task.buffers()), no_scaler, layout.device):
        with warnings.catch_warnings(), layout.autocast():
            warnings.simplefilter("ignore")  # that nobody averages the gradients, which is so in this step
            total = task(*tensors)["total"]
        gradients = torch.autograd.grad(total, learning, allow_unused=True)
    return distributed.largest(any(gradient is None for gradient in gradients)) > 0


@contextlib.contextmanager
def _same_attributes(task: nn.Module) -> Iterator[None]:
    """Context after which flags and counters of the modules in ``task`` are what they were."""
    plain = (bool, int, float, str, type(None))
    kept = [(module, {k: v for k, v in vars(module).items() if isinstance(v, plain)}) for module in task.modules()]
    try:
        yield
    finally:
        for module, attributes in kept:
            vars(module).update(attributes)


def apart(task: nn.Module, *, until_last: bool) -> contextlib.AbstractContextManager[None]:
    """Context in which the gradients of a wrapped ``task`` stay on their ranks, if more are to come in this step."""
    if until_last and isinstance(task, DistributedDataParallel):
        return task.no_sync()
    return contextlib.nullcontext()
