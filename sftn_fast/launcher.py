"""What torchrun told this process: which one it is, of how many. Needs no torch, so that a refusal costs no import."""

from __future__ import annotations

import os


def rank() -> int:
    """This process's number among all, 0 without a launcher."""
    return int(os.environ.get("RANK", "0"))


def local_rank() -> int:
    """Its number among those on this machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def world_size() -> int:
    """Number of processes, on all machines together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_world_size() -> int:
    """Number of processes on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def restarts() -> int:
    """How often the launcher has started the processes anew after one of them died."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
