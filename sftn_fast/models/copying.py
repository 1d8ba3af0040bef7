"""Deep copies of networks, also with pruned or normalised weights, hooks, or saved maps on their modules.

``copy.deepcopy`` refuses tensors that are results of a computation with gradients. Pruning, weight_norm and
spectral_norm store such a tensor in each layer, and replace it in the next forward pass.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from itertools import chain
from types import MethodType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)
Hook = Callable[..., object]

NESTED = 4
"""Depth to which tensors are searched in lists and dicts; bounded, since a list may hold itself."""


def copy_network(net: M) -> M:
    """Return a deep copy of ``net`` with its own parameters.

    Hooks are copied too, except methods of objects outside of the network, which are shared.
    """
    memo: dict[int, Any] = {id(tensor): tensor.detach().clone() for tensor in _tensors(net) if not tensor.is_leaf}
    return _copy(net, memo)


def copy_without_hooks(net: M) -> M:
    """Return a deep copy of ``net`` that calls nobody outside of it.

    It keeps only the hooks by which PyTorch computes a layer's weight and those that are the network's own methods.
    """
    return _drop_hooks(net, copy_network(net))


def copy_without_data(net: M) -> M:
    """Return a copy of ``net`` with its tensors on the meta device, without copying any data.

    It keeps the hooks that :func:`copy_without_hooks` keeps.
    """
    return _drop_hooks(net, _copy(net, {id(tensor): _on_meta(tensor) for tensor in _tensors(net)}))


def _drop_hooks(net: M, copied: M) -> M:
    """Remove from a copy of ``net`` the hooks that the network does not need, and return it."""
    inside = set(net.modules())
    for original, module in zip(net.modules(), copied.modules(), strict=True):
        for before, after in zip(_hooks(original), _hooks(module), strict=True):
            for key in [key for key, hook in before.items() if not _is_needed(hook, inside)]:
                del after[key]
    return copied


def _copy(net: M, memo: dict[int, Any]) -> M:
    # deepcopy uses an entry of its memo as the copy of that object.
    inside = set(net.modules())
    for hook in chain.from_iterable(hooks.values() for module in inside for hooks in _hooks(module)):
        if isinstance(hook, MethodType) and hook.__self__ not in inside:
            memo[id(hook)] = hook
    return copy.deepcopy(net, memo)


def _hooks(module: nn.Module) -> tuple[dict[int, Hook], dict[int, Hook]]:
    return module._forward_pre_hooks, module._forward_hooks


def _is_needed(hook: Hook, inside: set[nn.Module]) -> bool:
    if isinstance(hook, MethodType) and isinstance(hook.__self__, nn.Module):
        return hook.__self__ in inside
    return type(hook).__module__.startswith("torch.")


def _tensors(net: nn.Module) -> Iterator[Tensor]:
    """Yield parameters, buffers, and other tensors that are attributes of modules, also in lists and dicts."""
    for module in net.modules():
        # net.modules() yields the submodules itself.
        yield from _within([value for key, value in vars(module).items() if key != "_modules"])


def _within(value: object, depth: int = 0) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple, dict)) and depth < NESTED:
        for each in value.values() if isinstance(value, dict) else value:
            yield from _within(each, depth + 1)


def _on_meta(tensor: Tensor) -> Tensor:
    empty = torch.empty_like(tensor, device="meta")
    return nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
