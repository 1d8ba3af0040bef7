"""What a checkpoint must hold to be gone on from, whatever its checksum says: looked at before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sftn_fast.utils.text import printable

KINDS: dict[str, type | tuple[type, ...]] = {
    "task": Mapping,
    "optimizer": Mapping,
    "scaler": Mapping,
    "rng": list,
    "meter": list,
    "stopwatch": Mapping,
    "position": list,
    "history": list,
    "log_offsets": list,
}


def check_content(state: Any, task: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Make sure that ``state`` is of a run of ``task``.

    Raises:
        ValueError: a part is missing, or is of another type, shape or dtype; the message names it.
    """
    for name, kind in KINDS.items():
        if not isinstance(state.get(name), kind):
            raise ValueError(f"{name!r} is missing or of another type")
    if not stands_somewhere(state) or not _are_counts(state["log_offsets"], 2):
        raise ValueError("it does not say where the run stood")
    epoch, step_in_epoch, step = state["position"]
    if len(state["history"]) != epoch or step < step_in_epoch:
        raise ValueError(f"it stands in epoch {epoch} at step {step}, with a history of {len(state['history'])} epochs")
    for row in state["history"]:
        if not isinstance(row, Mapping) or not {"epoch", "step"} <= row.keys():
            raise ValueError("its history is no list of epochs")
    _check_tensors(state["task"], task.state_dict())
    _check_momentum(state["optimizer"], optimizer)


def stands_somewhere(state: Mapping[str, Any]) -> bool:
    """Return whether ``state`` says in which epoch and at which steps a run stood."""
    position = state.get("position")
    return isinstance(position, list) and _are_counts(position, 3)


def _are_counts(values: list[Any], count: int) -> bool:
    return len(values) == count and all(type(value) is int and value >= 0 for value in values)


def _check_tensors(theirs: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    for name in [*own, *theirs]:
        if name not in theirs or name not in own:
            where = "the checkpoint" if name not in theirs else "the network"
            raise ValueError(f"{printable(name)} is not in {where}")
        _check_alike(name, theirs[name], own[name])


def _check_momentum(theirs: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> None:
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for number, entry in theirs.get("state", {}).items():
        buffer = entry.get("momentum_buffer")
        if buffer is not None:
            _check_alike(f"momentum {number}", buffer, parameters[number])


def _check_alike(name: str, theirs: Any, own: Any) -> None:
    if not isinstance(own, Tensor):  # the extra state of a module, which is its own affair
        return
    if not isinstance(theirs, Tensor):
        raise ValueError(f"{printable(name)} is no tensor")
    if (theirs.shape, theirs.dtype) != (own.shape, own.dtype):
        raise ValueError(f"{printable(name)} is {theirs.dtype} {[*theirs.shape]}, not {own.dtype} {[*own.shape]}")
