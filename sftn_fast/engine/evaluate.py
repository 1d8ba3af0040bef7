"""Accuracy and cross-entropy of a network over a whole split."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sftn_fast.engine import distributed
from sftn_fast.engine.device import Layout
from sftn_fast.engine.protocols import Batch


@torch.no_grad()
def evaluate(model: nn.Module, batches: Iterable[Batch], layout: Layout) -> dict[str, float]:
    """Evaluate ``model`` (images ``[N, C, H, W]`` to logits ``[N, K]``) in eval mode on ``batches``.

    Each image counts once, for any batch size and over all ranks together. All ranks use the main rank's BatchNorm
    statistics. Sums stay on the device, and the host waits for it once, at the end.

    Returns:
        ``top1`` and, for five classes or more, ``top5`` in percent, and ``ce``, the mean cross-entropy in nats.

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


@dataclass(frozen=True)
class ClassCounts:
    """Images of a split counted by class. Each list has one number for each class."""

    images: list[int]
    """Images that have the class as their label."""
    right: list[int]
    """Those of them that the network classifies correctly."""
    predicted: list[int]
    """Images that the network assigns to the class."""

    @property
    def only_class(self) -> int | None:
        """The one class that all images are assigned to; None if there are several, or only one to choose from."""
        chosen = [number for number, count in enumerate(self.predicted) if count]
        return chosen[0] if len(chosen) == 1 < len(self.images) else None


@torch.no_grad()
def count_by_class(model: nn.Module, batches: Iterable[Batch], layout: Layout, num_classes: int) -> ClassCounts:
    """Count labels and predictions of ``model`` on ``batches`` by class, over all ranks together.

    The counts stay on the device, and the host waits for it once, at the end. Summed over the classes, ``right`` is the
    ``top1`` of :func:`evaluate` for the same ``model``, ``batches`` and ``layout``.
    """
    counts = torch.zeros(3, num_classes, dtype=torch.int64, device=layout.device)
    distributed.share_buffers(model)
    with _eval_mode(model), layout.autocast():
        for batch in batches:
            target = layout.indices(batch.target)
            chosen = _best(model(layout.images(batch.images)).float())[:, 0]
            one = torch.ones_like(target)
            for row, (label, number) in zip(
                counts, ((target, one), (target, one * (chosen == target)), (chosen, one)), strict=True
            ):
                row.scatter_add_(0, label, number)
    return ClassCounts(*distributed.all_sum(counts).tolist())


def _best(logits: Tensor) -> Tensor:
    """Return the five most likely classes ``[N, 5]``, or all classes if there are fewer."""
    return logits.topk(min(5, logits.shape[1]), dim=1).indices


def _batch_sums(logits: Tensor, target: Tensor) -> Tensor:
    hits = _best(logits) == target[:, None]  # [N, 5]
    ce = F.cross_entropy(logits, target, reduction="none").double().sum()
    images = torch.full_like(ce, len(target))
    return torch.stack([hits[:, 0].sum(), hits.sum(), ce, images])


@contextlib.contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    """Switch to eval mode, then restore each submodule's own mode, since some may be frozen in eval mode."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
