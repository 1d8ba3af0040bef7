"""What the losses' autograd functions share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def without_second_derivatives(grads: Sequence[Tensor | None], inputs: Sequence[Tensor]) -> list[Tensor | None]:
    """Gradients that raise when they are differentiated again.

    ``torch.autograd.function.once_differentiable`` does so only where ``grad_output`` requires a gradient; elsewhere,
    as in a gradient penalty, it hands out gradients that are constants, and the second derivative is a silent zero.
    """
    return [None if grad is None else _Once.apply(grad, *inputs) for grad in grads]


class _Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, grad: Tensor, *inputs: Tensor) -> Tensor:  # type: ignore[override]
        return grad.view_as(grad)

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> Any:  # type: ignore[override]
        raise RuntimeError(
            "the fused losses of sftn_fast have no second derivatives; `with sftn_fast.ops.backend('reference'):` "
            "computes the loss in plain PyTorch, which has"
        )
