"""Optimizers that run without importing torch's compiler.

torch wraps an optimizer's methods to keep the compiler out of them. These wrappers import the compiler at their first
call, compiled or not. That is a third of the processor time before the first step of a short training. Nothing here
compiles an optimizer: ``engine.compile`` compiles the task alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

GUARDED = ("add_param_group", "zero_grad", "state_dict", "load_state_dict")
"""Methods of every optimizer that torch wraps, besides ``step``."""
WRAPPERS = ("torch._compile", "torch.optim.optimizer")
"""Modules whose wrappers deal with the compiler, gradient mode and hooks of a step. Others stay."""

Optimizer = TypeVar("Optimizer", bound=torch.optim.Optimizer)


def without_compiler(kind: type[Optimizer]) -> type[Optimizer]:
    """Return a class like ``kind`` whose methods are those that torch has wrapped.

    A method that is not wrapped, as another version of torch may have it, stays as it is. The hooks of a step run as
    before, because an optimizer adds them to its class when it is built.
    """
    step = _unwrapped(kind.step)

    def plain_step(self: torch.optim.Optimizer, *closure: Any, **named: Any) -> Any:
        with torch.no_grad():  # as the wrapper does, unless the update must be differentiable
            return step(self, *closure, **named)

    methods = {name: _unwrapped(getattr(kind, name)) for name in GUARDED}
    described = {"__doc__": kind.__doc__, "__module__": kind.__module__, "__qualname__": kind.__qualname__}
    return type(kind.__name__, (kind,), {**described, **methods, "step": plain_step})


def _unwrapped(method: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function inside torch's wrappers, which :func:`functools.wraps` has left in ``__wrapped__``."""
    while hasattr(method, "__wrapped__") and getattr(method, "__globals__", {}).get("__name__") in WRAPPERS:
        method = method.__wrapped__
    return method
