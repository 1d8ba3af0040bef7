"""The process group of a run under torchrun. It is created and destroyed here and nowhere else."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator
from datetime import timedelta

import torch
import torch.distributed as dist

from sftn_fast.config import ConfigError, check
from sftn_fast.utils import launcher

# Ranks wait for the main one while it writes, measures and, on the first run, downloads data.
TIMEOUT = timedelta(minutes=30)


@contextlib.contextmanager
def process_group(device: str) -> Iterator[None]:
    """Join the processes that torchrun started. Does nothing if there is one process.

    On CUDA each process makes the device of its local rank the current one. Tensors there are sent by NCCL, numbers of
    the host by gloo, so that those don't wait for a GPU. On the CPU gloo sends both.

    Args:
        device: ``engine.device`` of the configuration.

    Raises:
        ConfigError: ``device`` names one device for all processes, or there are fewer devices than processes.
    """
    if launcher.world_size() == 1:
        yield
        return
    dist.init_process_group(
        backend(device), store=_store(), rank=launcher.rank(), world_size=launcher.world_size(), timeout=TIMEOUT
    )
    try:
        yield
    finally:
        # A wrapped task stays alive in reference cycles that hold the group; if it outlives the interpreter, it aborts.
        gc.collect()
        dist.destroy_process_group()


def backend(device: str) -> str:
    """Return the communication library for ``device``; make the local rank's device current if it is CUDA.

    Raises:
        ConfigError: see :func:`process_group`.
    """
    check(":" not in device, "engine.device", device, "auto, cpu or cuda over several ranks, each of which has its own")
    if device == "cpu" or not torch.cuda.is_available():
        return "gloo"
    own, here = launcher.local_rank(), torch.cuda.device_count()
    if own >= here:
        raise ConfigError(f"a machine has {here} CUDA devices, and torchrun started {own + 1} processes or more on it")
    torch.cuda.set_device(own)
    return "cpu:gloo,cuda:nccl"


def _store() -> dist.Store:
    """Return the launcher's key-value store with keys of this start only.

    torchrun keeps one store over restarts. From torch 2.13 on, its keys don't tell starts apart: ranks would look for
    each other at the addresses of dead processes.
    """
    store, _, _ = next(dist.rendezvous("env://", timeout=TIMEOUT))
    return dist.PrefixStore(f"start{launcher.restarts()}", store)
