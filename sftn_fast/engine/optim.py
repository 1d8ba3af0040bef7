"""Optimizers: SGD as in CRD and SFTN, AdamW, and any other class of ``torch.optim`` by its name.

Each is built with all of its state in place. So a rollback, an undone step and a checkpoint find every tensor that a
step writes, before the first step too.
"""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from sftn_fast.config import ConfigError, OptimConfig, check
from sftn_fast.utils.similar_names import did_you_mean, nearest
from sftn_fast.utils.text import one_line

UNSUITED = {
    "LBFGS": "calls the loss several times a step, by a closure",
    "SparseAdam": "takes sparse gradients alone",
    "Muon": "takes matrices alone, and networks have convolutions and biases too",
}
"""Classes of ``torch.optim`` that can't train a network here, with the reason."""
OF_THE_ENGINE = {"params", "lr", "weight_decay", "foreach", "fused", "capturable", "differentiable", "maximize"}
"""Arguments of the classes that are settings of their own, or that the engine decides."""
Values = dict[str, Tensor]


def optimizers() -> dict[str, type[torch.optim.Optimizer]]:
    """Return the classes that a configuration may name, by their names."""
    found = {
        name: value
        for name, value in vars(torch.optim).items()
        if isinstance(value, type) and issubclass(value, torch.optim.Optimizer) and value is not torch.optim.Optimizer
    }
    return {name: found[name] for name in sorted(found) if name not in UNSUITED}


def check_optimizer(optim: OptimConfig) -> None:
    """Raise :class:`ConfigError` for an unknown optimizer or argument, or a value that its class refuses."""
    kind = _class_of(optim)
    known = _arguments_of(kind)
    for name, value in optim.arguments.items():
        key = f"optim.arguments.{name}"
        if name not in known:
            instead = f"optim.{name}" if name in ("lr", "weight_decay") else ", ".join(known) or "none"
            raise ConfigError(f"{key} is no argument of {kind.__name__}, which has: {instead}")
        _check_type(key, value, known[name].default)
    if "weight_decay" not in inspect.signature(kind).parameters:
        allowed = f"null or 0 with {kind.__name__}, which has no weight decay"
        check(not optim.weight_decay, "optim.weight_decay", optim.weight_decay, allowed)
    try:
        _construct([nn.Parameter(torch.zeros(1))], optim, default_lr(optim) or 1.0)
    except Exception as error:  # a class may raise anything for its arguments
        raise ConfigError(
            f"optim.arguments: {kind.__name__} refuses {dict(optim.arguments)} ({one_line(str(error))})"
        ) from error


def default_lr(optim: OptimConfig) -> float | None:
    """Return the learning rate of the optimizer's class; None for SGD, where it depends on the network."""
    return None if optim.is_sgd else float(inspect.signature(_class_of(optim)).parameters["lr"].default)


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
    optimizer = _construct(_groups(task, optim), optim, lr)
    _allocate(optimizer)
    return optimizer


def build_sgd(task: nn.Module, optim: OptimConfig, lr: float) -> torch.optim.SGD:
    """Return an SGD for every parameter of ``task`` that requires a gradient, with zeros as its momentum.

    Update and weight decay follow the reference code. It is the fused variant, because that can skip a step by a flag
    on the device (``optimizer.found_inf``).

    Raises:
        ValueError: no parameter of ``task`` requires a gradient.
    """
    sgd = torch.optim.SGD(
        _groups(task, optim),
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


def _class_of(optim: OptimConfig) -> type[torch.optim.Optimizer]:
    known, name = optimizers(), optim.name
    for unsuited, reason in UNSUITED.items():
        if name == unsuited.lower():
            raise ConfigError(f"optim.name must be one of {', '.join(known)}, got {unsuited!r}, which {reason}")
    for each, kind in known.items():
        if name == each.lower():
            return kind
    raise ConfigError(f"optim.name must be one of {', '.join(known)}, got {name!r}{did_you_mean(nearest(name, known))}")


def _arguments_of(kind: type[torch.optim.Optimizer]) -> dict[str, inspect.Parameter]:
    """Return the arguments of a class that a configuration may give."""
    parameters = inspect.signature(kind).parameters
    return {name: parameter for name, parameter in parameters.items() if name not in OF_THE_ENGINE}


def _check_type(key: str, value: Any, default: Any) -> None:
    """Raise :class:`ConfigError` unless ``value`` is of the kind of the argument's ``default``."""
    if isinstance(default, bool):
        check(isinstance(value, bool), key, value, "true or false")
    elif isinstance(default, int | float):
        check(_is_number(value), key, value, f"a number, as in {default:g}")
    elif isinstance(default, tuple):
        shown = ",".join("null" if each is None else f"{each:g}" for each in default)
        fits = isinstance(value, tuple | list) and len(value) == len(default)
        fits = fits and all(_is_number(a) or (a is None and b is None) for a, b in zip(value, default, strict=True))
        check(fits, key, value, f"{len(default)} numbers, as in [{shown}]")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _construct(parameters: list[Any], optim: OptimConfig, lr: float) -> torch.optim.Optimizer:
    """Return an optimizer of the class that ``optim`` names, without state.

    It is fused where the class can be, and otherwise, on a GPU, such that a CUDA graph can hold its step.
    """
    kind = _class_of(optim)
    accepted = inspect.signature(kind).parameters
    options: dict[str, Any] = dict(optim.arguments)
    if optim.weight_decay is not None and "weight_decay" in accepted:
        options["weight_decay"] = optim.weight_decay
    first = parameters[0]["params"][0] if isinstance(parameters[0], dict) else parameters[0]
    if "fused" in accepted:
        options["fused"] = True
    elif "capturable" in accepted:
        options["capturable"] = first.is_cuda
    return cast(Any, kind)(parameters, lr=lr, **options)  # which has no lr in its base class


def _groups(task: nn.Module, optim: OptimConfig) -> list[Any]:
    """Return what learns in ``task``: as a list, or in two groups if only one of them decays."""
    learning = {name: parameter for name, parameter in task.named_parameters() if parameter.requires_grad}
    if not learning:
        raise ValueError("the task has no parameter that requires grad: there is nothing to train")
    if optim.decay_norms_and_biases:
        return list(learning.values())
    exempt = _named_exempt(task)
    free = [p for name, p in learning.items() if p.ndim <= 1 or name in exempt]
    decaying = [p for name, p in learning.items() if p.ndim > 1 and name not in exempt]
    groups: list[dict[str, Any]] = [{"params": decaying}, {"params": free, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


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
