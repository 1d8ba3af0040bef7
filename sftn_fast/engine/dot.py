"""Distillation-oriented training: the labels' gradient and the teacher's each have a momentum of their own.

Zhao et al., "DOT: A Distillation-Oriented Trainer", ICCV 2023: with delta d, the labels' momentum is m - d and the
teacher's m + d. The update is the sum of both, and weight decay belongs to the labels' gradient. So it equals two
updates by SGD, one after the other.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sftn_fast.config import OptimConfig
from sftn_fast.engine import distributed
from sftn_fast.engine.optim import build_optimizer

LABELS = "labels"
"""Name of the term that carries the gradient of the labels' part of the total, of a task that splits its total."""

Gradients = list[Tensor | None]


def build_pair(
    task: nn.Module, optim: OptimConfig, lr: float
) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer | None]:
    """Return the optimizer of the labels' gradient and, with ``optim.dot``, that of the teacher's."""
    if not optim.dot:
        return build_optimizer(task, optim, lr), None
    labels = dataclasses.replace(optim, dot=0.0, momentum=optim.momentum - optim.dot)
    teacher = dataclasses.replace(optim, dot=0.0, momentum=optim.momentum + optim.dot, weight_decay=0.0)
    return build_optimizer(task, labels, lr), build_optimizer(task, teacher, lr)


def split_gradients(total: Tensor, labels: Tensor, parameters: Sequence[Tensor]) -> tuple[Gradients, Gradients]:
    """Return the gradients of ``labels``, a part of ``total``, and those of the rest; None where one has none."""
    ours = torch.autograd.grad(labels, parameters, retain_graph=True, allow_unused=True)
    theirs = torch.autograd.grad(total - labels, parameters, allow_unused=True)
    return list(ours), list(theirs)


def added(first: Gradients, second: Gradients) -> Gradients:
    """Return the sums of gradients, where None stands for zeros."""
    return [b if a is None else a if b is None else a + b for a, b in zip(first, second, strict=True)]


def averaged(gradients: Gradients) -> Gradients:
    """Return the means of gradients over all ranks, which have them for the same parameters."""
    ranks = distributed.world_size()
    given = [gradient for gradient in gradients if gradient is not None]
    if ranks == 1 or not given:
        return gradients
    means = distributed.all_sum(torch.cat([gradient.flatten() for gradient in given])) / ranks
    parts = iter(means.split([gradient.numel() for gradient in given]))
    return [None if gradient is None else next(parts).view_as(gradient) for gradient in gradients]
