"""Data-parallel training: one task on several ranks with the same weights, each with a share of the batch."""

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
from sftn_fast.engine.protocols import Batch
from sftn_fast.engine.rollback import rollback

# torch 2.14 renamed the option and warns about the old name.
_SYNC_BUFFERS = next(
    name
    for name in ("forward_sync_buffers", "broadcast_buffers")
    if name in inspect.signature(DistributedDataParallel).parameters
)


def synchronise_batchnorm(task: nn.Module, device: torch.device) -> None:
    """Compute the BatchNorm statistics in ``task`` over the batches of all ranks. Does nothing at one rank.

    Raises:
        ConfigError: ``device`` is the CPU, for which PyTorch has no such layer.
    """
    if distributed.world_size() > 1:
        check(device.type != "cpu", "engine.sync_batchnorm", True, "false on the CPU")
        nn.SyncBatchNorm.convert_sync_batchnorm(task)


def wrap(task: nn.Module, *, find_unused: bool = False) -> nn.Module:
    """Wrap ``task`` so that the backward pass averages gradients over the ranks. At one rank, return it unchanged.

    Every rank starts with the main rank's weights and buffers. With ``find_unused``, the graph of each step is searched
    for parameters without a gradient. Otherwise every parameter that requires a gradient must get one. Buffers are not
    synchronised in a step, see :func:`~sftn_fast.engine.distributed.share_buffers`.
    """
    if distributed.world_size() == 1:
        return task
    distributed.share_buffers(task)
    options: dict[str, Any] = {_SYNC_BUFFERS: False, "find_unused_parameters": find_unused}
    return DistributedDataParallel(task, **options)


def leaves_some_unused(task: nn.Module, batch: Batch, layout: Layout) -> bool:
    """Return whether a step on ``batch`` leaves a parameter of ``task`` without a gradient on any rank.

    The step is rolled back. All ranks must call this.
    """
    task.train()
    tensors = layout.images(batch.images), layout.indices(batch.target), layout.indices(batch.index)
    learning = [p for p in task.parameters() if p.requires_grad]
    no_scaler = torch.amp.GradScaler(layout.device.type, enabled=False)
    with _same_attributes(task), rollback(list(task.buffers()), no_scaler, layout.device):
        with warnings.catch_warnings(), layout.autocast():
            warnings.simplefilter("ignore")  # DDP warns that this step does not average gradients, which is intended
            total = task(*tensors)["total"]
        gradients = torch.autograd.grad(total, learning, allow_unused=True)
    return distributed.largest(any(gradient is None for gradient in gradients)) > 0


@contextlib.contextmanager
def _same_attributes(task: nn.Module) -> Iterator[None]:
    """Restore flags and counters of the modules in ``task`` when the context ends."""
    plain = (bool, int, float, str, type(None))
    kept = [(module, {k: v for k, v in vars(module).items() if isinstance(v, plain)}) for module in task.modules()]
    try:
        yield
    finally:
        for module, attributes in kept:
            vars(module).update(attributes)


def no_sync(task: nn.Module, *, more_to_come: bool) -> contextlib.AbstractContextManager[None]:
    """Return a context that keeps the gradients of a wrapped ``task`` on their ranks if more follow in this step."""
    if more_to_come and isinstance(task, DistributedDataParallel):
        return task.no_sync()
    return contextlib.nullcontext()
