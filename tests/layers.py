"""Comparison of losses that have layers with float64, from the layers' outputs on.

Under autocast a convolution computes in half precision, as those of the networks do. What a loss makes of its output is
to be as exact as float32: so a run in half precision records what the layers gave, and one in float64 is given that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from every_loss import changed, tensors_in
from torch import Tensor, nn

LAYERS = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear, nn.BatchNorm2d, nn.ReLU, nn.LeakyReLU)


@contextmanager
def recorded(module: nn.Module, layers: Sequence[type[nn.Module]] = LAYERS) -> Iterator[list[Tensor]]:
    """Detach the layers' outputs inside the context, and collect them in the list, with gradients required."""
    kept: list[Tensor] = []

    def keep(output: Tensor) -> Tensor:
        kept.append(output.detach().requires_grad_())
        return kept[-1].clone()

    with _replaced(module, layers, keep):
        yield kept


@contextmanager
def replayed(
    module: nn.Module, outputs: Sequence[Tensor], layers: Sequence[type[nn.Module]] = LAYERS
) -> Iterator[None]:
    """Let the layers return ``outputs`` inside the context, in the order of their calls."""
    given = iter(outputs)
    with _replaced(module, layers, lambda _: next(given).clone()):
        yield
    assert next(given, None) is None


@contextmanager
def _replaced(
    module: nn.Module, layers: Sequence[type[nn.Module]], replace: Callable[[Tensor], Tensor]
) -> Iterator[None]:
    hooks = [
        layer.register_forward_hook(lambda _layer, _inputs, output: changed(output, replace))
        for layer in _outermost(module, tuple(layers))
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _outermost(module: nn.Module, layers: tuple[type[nn.Module], ...]) -> Iterator[nn.Module]:
    for child in module.children():
        if isinstance(child, layers):
            yield child
        else:
            yield from _outermost(child, layers)


def leaves_of(value: Any) -> Any:
    """Return the same nested value, with gradients required of all floating-point tensors."""
    return changed(value, lambda x: x.detach().requires_grad_() if x.is_floating_point() else x)


def gradients(value: Tensor, *nests: Any) -> list[Tensor]:
    """Return gradients of the tensors in the nested values that require one; zeros where there is none."""
    leaves = [x for nest in nests for x in tensors_in(nest) if x.requires_grad]
    grads = torch.autograd.grad(value, leaves, allow_unused=True)
    return [torch.zeros_like(x) if grad is None else grad for x, grad in zip(leaves, grads, strict=True)]
