"""Checks on the content of a checkpoint, made before anything is loaded: a valid checksum does not cover these."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sftn_fast.engine.best_epoch import best_row
from sftn_fast.engine.ema import EMA
from sftn_fast.engine.optim import numbered_state
from sftn_fast.utils.observers import is_sized_by_data
from sftn_fast.utils.text import printable

PART_TYPES: dict[str, type | tuple[type, ...]] = {
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


def check_content(
    state: Any, task: nn.Module, optimizers: Sequence[torch.optim.Optimizer], ema: EMA | None = None
) -> None:
    """Check that ``state`` belongs to a run of ``task`` with such ``optimizers`` and, if it has one, such an average.

    Raises:
        ValueError: a part is missing or has another type, shape or dtype. The message names it.
    """
    for name, kind in PART_TYPES.items():
        if not isinstance(state.get(name), kind):
            raise ValueError(f"{name!r} is missing or has another type")
    if not has_position(state) or not _are_counts(state["log_offsets"], 1, 2):
        raise ValueError("the run's position is missing or damaged")
    epoch, step_in_epoch, step = state["position"]
    if len(state["history"]) != epoch or step < step_in_epoch:
        raise ValueError(f"it is in epoch {epoch} at step {step}, but its history has {len(state['history'])} epochs")
    for row in state["history"]:
        if not isinstance(row, Mapping) or not {"epoch", "step"} <= row.keys():
            raise ValueError("its history is not a list of epochs")
    _check_best(state.get("best"), state["history"], task)
    _check_tensors(state["task"], task.state_dict())
    saved = optimizer_states(state)
    if len(saved) != len(optimizers):
        raise ValueError(f"it has {len(saved)} optimizers, not {len(optimizers)}")
    for momenta, optimizer in zip(saved, optimizers, strict=True):
        _check_momenta(momenta, optimizer)
    if ema is not None:
        if not isinstance(state.get("ema"), Mapping):
            raise ValueError("the average of the network's weights is missing")
        _check_tensors(state["ema"], ema.state_dict())


def optimizer_states(state: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the states of the optimizers; earlier versions had only one."""
    more = state.get("teacher_optimizer", [])
    if not isinstance(more, list) or not all(isinstance(each, Mapping) for each in more):
        raise ValueError("'teacher_optimizer' has another type")
    return [state["optimizer"], *more]


def has_position(state: Mapping[str, Any]) -> bool:
    """Return whether ``state`` has the epoch and the steps that a run had reached."""
    position = state.get("position")
    return isinstance(position, list) and _are_counts(position, 3)


def _are_counts(values: list[Any], *lengths: int) -> bool:
    return len(values) in lengths and all(type(value) is int and value >= 0 for value in values)


def _check_best(best: Any, history: list[Any], task: nn.Module) -> None:
    if best is None:
        return
    row = best_row(history)
    model = getattr(task, "model", None)
    if row is None or model is None or not isinstance(best, Mapping) or best.get("epoch") != row["epoch"]:
        raise ValueError("its best epoch is not that of its history")
    if not isinstance(best.get("weights"), Mapping):
        raise ValueError("the weights of its best epoch are missing")
    _check_tensors(best["weights"], model.state_dict())


def _check_tensors(theirs: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    for name in [*own, *theirs]:
        if name not in theirs or name not in own:
            where = "the checkpoint" if name not in theirs else "the network"
            raise ValueError(f"{printable(name)} is not in {where}")
        _check_alike(name, theirs[name], own[name])


def _check_momenta(theirs: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> None:
    groups = [group["params"] for group in theirs["param_groups"]]
    if groups != [group["params"] for group in optimizer.state_dict()["param_groups"]]:
        raise ValueError("its optimizer has other parameters")
    saved, own = theirs.get("state", {}), numbered_state(optimizer)
    if more := saved.keys() - own.keys():
        raise ValueError(f"its optimizer has a state of parameter {printable(next(iter(more)))}, which does not learn")
    for number, values in own.items():
        for name, value in values.items():
            what = f"{name.removesuffix('_buffer')} {number}"  # such as "momentum 3"
            if not isinstance(entry := saved.get(number), Mapping) or name not in entry:
                raise ValueError(f"{what} is missing")
            _check_alike(what, entry[name], value)


def _check_alike(name: str, theirs: Any, own: Any) -> None:
    if not isinstance(own, Tensor):  # extra state of a module, which checks it itself
        return
    if not isinstance(theirs, Tensor):
        raise ValueError(f"{printable(name)} is not a tensor")
    fits = theirs.shape == own.shape or (is_sized_by_data(name) and theirs.dim() <= 1 and own.dim() <= 1)
    if not fits or theirs.dtype != own.dtype:
        raise ValueError(f"{printable(name)} is {theirs.dtype} {[*theirs.shape]}, not {own.dtype} {[*own.shape]}")
