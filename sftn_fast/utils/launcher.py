"""Environment variables of torchrun: the number of this process and of all. Imports no torch."""

from __future__ import annotations

import os

from sftn_fast.config import ConfigError

NEEDED = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""Variables that each of several processes needs, besides WORLD_SIZE."""
CURE = "start with torchrun, or unset them to run as one process"


def check() -> None:
    """Raise :class:`ConfigError` if the launcher's variables are incomplete or contradict each other."""
    numbers = {name: _number(name, default) for name, default in DEFAULTS.items()}
    rank, ranks = numbers["RANK"], numbers["WORLD_SIZE"]
    missing = [name for name in NEEDED if not os.environ.get(name)]
    if ranks > 1 and missing:
        raise ConfigError(f"WORLD_SIZE is {ranks}, but {' and '.join(missing)} not set: {CURE}")
    if ranks < 1 or not 0 <= rank < ranks:
        where = "" if os.environ.get("WORLD_SIZE") else ", which is not set"
        raise ConfigError(f"RANK is {rank}, which must be from 0 to below WORLD_SIZE, {ranks}{where}: {CURE}")
    local, local_ranks = numbers["LOCAL_RANK"], numbers["LOCAL_WORLD_SIZE"]
    # Some launchers don't set the number of processes per machine.
    bound = local_ranks if os.environ.get("LOCAL_WORLD_SIZE") else ranks
    if not (1 <= local_ranks <= ranks and 0 <= local < bound):
        raise ConfigError(f"LOCAL_RANK is {local} of LOCAL_WORLD_SIZE {local_ranks}, but WORLD_SIZE is {ranks}: {CURE}")
    if ranks > 1 and not 0 < _number("MASTER_PORT", 0) < 2**16:
        raise ConfigError(f"MASTER_PORT must be from 1 to 65535, got {os.environ['MASTER_PORT']!r}: {CURE}")
    _number("TORCHELASTIC_RESTART_COUNT", 0)


def check_alone(program: str) -> None:
    """Raise :class:`ConfigError` if several processes run ``program``. Each would do all the work."""
    check()
    if world_size() > 1:
        raise ConfigError(f"{program} runs in one process, but WORLD_SIZE is {world_size()}: start it without torchrun")


DEFAULTS = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "LOCAL_WORLD_SIZE": 1}


def _number(name: str, default: int) -> int:
    text = os.environ.get(name) or str(default)
    if not (text.isascii() and text.isdecimal() and len(text) < 10):
        raise ConfigError(f"the environment's {name} must be a whole number, got {text[:80]!r}: {CURE}")
    return int(text)


def rank() -> int:
    """Return the number of this process among all; 0 without a launcher."""
    return _number("RANK", 0)


def local_rank() -> int:
    """Return the number of this process among those on this machine."""
    return _number("LOCAL_RANK", 0)


def world_size() -> int:
    """Return the number of processes on all machines."""
    return _number("WORLD_SIZE", 1)


def local_world_size() -> int:
    """Return the number of processes on this machine."""
    return _number("LOCAL_WORLD_SIZE", 1)


def restarts() -> int:
    """Return how often the launcher has restarted the processes because one of them died."""
    return _number("TORCHELASTIC_RESTART_COUNT", 0)
