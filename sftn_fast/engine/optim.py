"""Optimizers: SGD as in CRD and SFTN, AdamW, and any other class of ``torch.optim`` by its name.

Each is built with all of its state in place. So a rollback, an undone step and a checkpoint find every tensor that a
step writes, before the first step too.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sftn_fast.config import OptimConfig
from sftn_fast.engine.optimizer_classes import check_optimizer, construct
from sftn_fast.engine.protocols import GroupedTask, ParameterGroup
from sftn_fast.engine.uncompiled import without_compiler

Values = dict[str, Tensor]
FACTOR = "lr_factor"
"""Key of a group of an optimizer whose learning rate is that of the schedule times this."""


def build_optimizer(task: nn.Module, optim: OptimConfig, lr: float) -> torch.optim.Optimizer:
    """Return an optimizer for every parameter of ``task`` that requires a gradient, with its state in place.

    Args:
        task: On its device, in its memory format.
        optim: Class, arguments and weight decay.
        lr: Learning rate of the first step, which some classes make a part of their state.

    Raises:
        ConfigError: ``optim`` names no such optimizer, or gives arguments that it does not take.
        ValueError: no parameter of ``task`` requires a gradient.
    """
    if optim.is_sgd:
        return build_sgd(task, optim, lr)
    check_optimizer(optim)
    optimizer = construct(_groups(task, optim, lr), optim, lr)
    _allocate(optimizer)
    return optimizer


def build_sgd(task: nn.Module, optim: OptimConfig, lr: float) -> torch.optim.SGD:
    """Return an SGD for every parameter of ``task`` that requires a gradient, with zeros as its momentum.

    Update and weight decay follow the reference code. It is the fused variant, because that can skip a step by a flag
    on the device (``optimizer.found_inf``).

    Raises:
        ValueError: no parameter of ``task`` requires a gradient.
    """
    sgd = without_compiler(torch.optim.SGD)(
        _groups(task, optim, lr),
        lr,
        momentum=optim.momentum,
        weight_decay=optim.weight_decay or 0.0,
        nesterov=optim.nesterov,
        fused=True,
    )
    # Fused SGD allocates uninitialised momentum, which a skipped first step would leave in place. With zeros the first
    # step is the same: 0 * momentum + gradient.
    if optim.momentum > 0:
        for parameter in parameters_of(sgd):
            sgd.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return sgd


def load_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Copy ``state``, that of an optimizer with the same settings, into the tensors of ``optimizer``.

    They stay in place, in the parameter's memory format: fused kernels and recorded steps read them by address.
    """
    with torch.no_grad():
        for number, values in numbered_state(optimizer).items():
            for name, value in values.items():
                value.copy_(state["state"][number][name])


def numbered_state(optimizer: torch.optim.Optimizer) -> dict[int, Values]:
    """Return the state of each parameter by the number that ``state_dict`` gives it."""
    return {
        number: dict(optimizer.state[parameter])
        for number, parameter in enumerate(parameters_of(optimizer))
        if parameter in optimizer.state
    }


def parameters_of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Return the parameters that ``optimizer`` changes, in the order of ``state_dict``."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def state_of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Return the tensors that ``optimizer`` keeps between steps."""
    return [value for values in optimizer.state.values() for value in values.values()]


def is_fused(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether one kernel updates all parameters, and can skip that by a flag on the device."""
    return bool(optimizer.defaults.get("fused"))


def runs_on_device(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether a step reads its learning rate and its state on the device, as a CUDA graph needs it."""
    return is_fused(optimizer) or bool(optimizer.defaults.get("capturable"))


def _groups(task: nn.Module, optim: OptimConfig, lr: float) -> list[dict[str, Any]]:
    """Return what learns in ``task``, in one group.

    Parameters with settings of their own are in further groups, and so are those that don't decay, if others do.
    """
    learning = {name: parameter for name, parameter in task.named_parameters() if parameter.requires_grad}
    if not learning:
        raise ValueError("the task has no parameter that requires grad: there is nothing to train")
    apart = task.parameter_groups() if isinstance(task, GroupedTask) else []
    group_of = {id(parameter): number for number, each in enumerate(apart, start=1) for parameter in each.parameters}
    exempt = set() if optim.decay_norms_and_biases else _exempt(task, learning)
    groups: list[dict[str, Any]] = []
    for number, settings in enumerate([{}, *(_settings(each, lr) for each in apart)]):
        names = [name for name, parameter in learning.items() if group_of.get(id(parameter), 0) == number]
        decaying, free = [[learning[name] for name in names if (name in exempt) is each] for each in (False, True)]
        groups += [{"params": decaying, **settings}, {"params": free, **settings, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def _settings(group: ParameterGroup, lr: float) -> dict[str, Any]:
    """Return the entries of an optimizer's group in which ``group`` differs from others in a step of rate ``lr``."""
    rate = {} if group.lr == 1.0 else {"lr": lr * group.lr, FACTOR: group.lr}
    return rate if group.weight_decay is None else {**rate, "weight_decay": group.weight_decay}


def _exempt(task: nn.Module, learning: Mapping[str, Tensor]) -> set[str]:
    """Return the names of the parameters that don't decay where norms and biases don't."""
    return {name for name, parameter in learning.items() if parameter.ndim <= 1} | _named_exempt(task)


def _named_exempt(task: nn.Module) -> set[str]:
    """Return the parameters that networks in ``task`` name themselves, as timm's do, such as position embeddings."""
    return {
        f"{prefix}.{name}" if prefix else name
        for prefix, module in task.named_modules()
        if callable(named := getattr(module, "no_weight_decay", None))
        for name in named()
    }


class _State(dict[str, Tensor]):
    """State of a parameter that also keeps each value as it was when the class first set it."""

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        super().__init__(values)
        self.first = {name: value.clone() for name, value in values.items()}

    def __setitem__(self, name: str, value: Tensor) -> None:
        self.first.setdefault(name, value.clone())
        super().__setitem__(name, value)


@torch.no_grad()
def _allocate(optimizer: torch.optim.Optimizer) -> None:
    """Let ``optimizer`` create its state, which it does in its first step, and leave everything else as it was."""
    parameters = parameters_of(optimizer)
    before = [parameter.clone() for parameter in parameters]
    states = {parameter: _State(optimizer.state.get(parameter, {})) for parameter in parameters}
    optimizer.state = defaultdict(dict, states)
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    for parameter, value in zip(parameters, before, strict=True):
        parameter.copy_(value)
        for name, first in states[parameter].first.items():
            states[parameter][name].copy_(first)
    # Plain, as torch makes them: checkpoints hold nothing of ours.
    optimizer.state = defaultdict(dict, {parameter: dict(state) for parameter, state in states.items()})
