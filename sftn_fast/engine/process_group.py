"""The process group of a run that torchrun started: set up and torn down here, and nowhere else."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator
from datetime import timedelta

import torch
import torch.distributed as dist

from sftn_fast.config import ConfigError, check
from sftn_fast.utils import launcher

# Ranks wait for the main one while it writes, measures and, on the first run, fetches data.
TIMEOUT = timedelta(minutes=30)


@contextlib.contextmanager
def process_group(device: str) -> Iterator[None]:
    """Join the processes that torchrun started; does nothing where there is just one.

    On CUDA each process takes the device of its local rank as the current one, tensors there travel by NCCL, and what
    the host agrees on by gloo, so that no such word waits for a GPU. On the CPU gloo does both.

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
        # A wrapped task lives on in cycles that hold the group; one that outlives the interpreter aborts the process.
        gc.collect()
        dist.destroy_process_group()


def backend(device: str) -> str:
    """The communication library for ``device``, which becomes this process's own where it is a CUDA one.

    Raises:
        ConfigError: See :func:`process_group`.
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
    """The launcher's key-value store, with keys of this start's own.

    torchrun keeps one store over restarts, and from torch 2.13 on nothing tells one start's keys from the next one's:
    the ranks would look for each other at addresses of processes that are dead.
    """
    store, _, _ = next(dist.rendezvous("env://", timeout=TIMEOUT))
    return dist.PrefixStore(f"start{launcher.restarts()}", store)
