"""Accuracy and cross-entropy of a network over a whole split."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sftn_fast.engine import distributed
from sftn_fast.engine.device import Layout


@torch.no_grad()
def evaluate(model: nn.Module, batches: Iterable[Any], layout: Layout) -> dict[str, float]:
    """Evaluate ``model`` (images ``[N, C, H, W]`` to logits ``[N, K]``) in eval mode on ``batches``.

    Each image counts once, whatever the size of its batch and over all ranks together, which evaluate the main rank's
    BatchNorm statistics. Sums stay on the device, which the host waits for once, at the end.

    Returns:
        ``top1`` and, from five classes on, ``top5`` in percent, and ``ce``, the mean cross-entropy in nats.

    Raises:
        ValueError: there are no images.
    """
    sums = torch.zeros(
        4, dtype=torch.float64, device=layout.device
    )  # correct at 1, correct at 5, cross-entropy, images
    classes = 0
    distributed.share_buffers(model)
    with _eval_mode(model), layout.autocast():
        for batch in batches:
            logits = model(layout.images(batch.images)).float()
            classes = logits.shape[1]
            sums += _batch_sums(logits, layout.indices(batch.target))
    top1, top5, ce, images_seen = distributed.all_sum(sums).tolist()
    if not images_seen:
        raise ValueError("there are no images to evaluate on")
    result = {"top1": 100 * top1 / images_seen, "top5": 100 * top5 / images_seen, "ce": ce / images_seen}
    return (
        result
        if distributed.largest(classes) >= 5
        else {name: value for name, value in result.items() if name != "top5"}
    )


def _batch_sums(logits: Tensor, target: Tensor) -> Tensor:
    best = logits.topk(min(5, logits.shape[1]), dim=1).indices
    hits = best == target[:, None]  # [N, 5]
    ce = F.cross_entropy(logits, target, reduction="none").double().sum()
    images = torch.full_like(ce, len(target))
    return torch.stack([hits[:, 0].sum(), hits.sum(), ce, images])


@contextlib.contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode inside; each submodule's own mode again outside, since some may be frozen in eval mode."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
