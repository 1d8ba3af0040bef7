"""The classes of ``torch.optim`` that a configuration may name, and their arguments."""

from __future__ import annotations

import inspect
from typing import Any, cast

import torch
from torch import nn

from sftn_fast.config import ConfigError, OptimConfig, check
from sftn_fast.engine.uncompiled import without_compiler
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
            if name in ("lr", "weight_decay"):
                raise ConfigError(f"{key} is set by optim.{name}, not by an argument")
            raise ConfigError(f"{key} is no argument of {kind.__name__}, which has: {', '.join(known) or 'none'}")
        _check_type(key, value, known[name].default)
    check_weight_decay("optim.weight_decay", optim.weight_decay, optim)
    try:
        construct([nn.Parameter(torch.zeros(1))], optim, default_lr(optim) or 1.0)
    except Exception as error:  # a class may raise anything for its arguments
        raise ConfigError(
            f"optim.arguments: {kind.__name__} refuses {dict(optim.arguments)} ({one_line(str(error))})"
        ) from error


def check_weight_decay(key: str, value: float | None, optim: OptimConfig) -> None:
    """Raise :class:`ConfigError` for the weight decay ``value`` of the setting ``key`` if the class has none."""
    kind = _class_of(optim)
    if "weight_decay" not in inspect.signature(kind).parameters:
        check(not value, key, value, f"null or 0 with {kind.__name__}, which has no weight decay")


def default_lr(optim: OptimConfig) -> float | None:
    """Return the learning rate of the optimizer's class; None for SGD, where it depends on the network."""
    return None if optim.is_sgd else float(inspect.signature(_class_of(optim)).parameters["lr"].default)


def construct(parameters: list[Any], optim: OptimConfig, lr: float) -> torch.optim.Optimizer:
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
    return cast(Any, without_compiler(kind))(parameters, lr=lr, **options)  # which has no lr in its base class


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
