"""Mixed images: mixup and cutmix of a whole batch on its device, and the targets of the mixtures.

mixup is that of Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018: the mean of two images, weighted.
cutmix is that of Yun et al., "CutMix: Regularization Strategy to Train Strong Classifiers", ICCV 2019: a box of one
image in another. As in timm, a batch is mixed in one way with one weight.

The choice, weight and box of a step are a pure function of ``(seed, epoch, step)``, equal on all ranks. Images mix with
their neighbours in the batch, in pairs. So ranks with an even number of images each see what one rank would.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, from_numpy

from sftn_fast.config import DataConfig, check
from sftn_fast.data.boxes import inside
from sftn_fast.data.file_loaders import FileTrainLoader
from sftn_fast.data.loaders import Batch, DeferredBatch, TrainLoader
from sftn_fast.data.seeding import generator


@dataclass(frozen=True)
class Mixing:
    """How the batches of a training are mixed, and how far their targets are smoothed.

    A mixed batch has probabilities [B, num_classes] as targets. Its indices are those of the images with the larger
    share, so that they still name each image of the batch once. Nothing here waits for the device.
    """

    config: DataConfig
    num_classes: int
    image_size: int
    device: torch.device
    weights: Tensor | None = field(default=None, compare=False)
    """Weight of an image of each class [num_classes] float32; None if all weigh the same."""

    @classmethod
    def of(cls, config: DataConfig, labels: Tensor, num_classes: int, image_size: int) -> Mixing | None:
        """Return what ``config`` asks for, or None if images and labels stay as they are.

        Args:
            config: Settings.
            labels: Classes of the training images [N] int64, on the device of the batches.
            num_classes: Classes.
            image_size: Side of the images in pixels.

        Raises:
            ConfigError: ``data.class_weights`` does not have a number for each class.
        """
        if not (config.mixes or config.changes_labels):
            return None
        return cls(config, num_classes, image_size, labels.device, weights_of(config, labels, num_classes))

    def settings(self) -> dict[str, str | float]:
        """Return the settings in effect, for the run's fingerprint."""
        names = ["mixup", "cutmix", "mixup_prob", "mixup_switch_prob"] if self.config.mixes else []
        names += ["label_smoothing"] if self.config.label_smoothing else []
        settings: dict[str, str | float] = {name: getattr(self.config, name) for name in names}
        if self.config.class_weights != "none":
            settings["class_weights"] = str(self.config.class_weights)
        return settings

    def draw(self, seed: int, epoch: int, steps: int) -> Tensor:
        """Draw the random numbers of an epoch: [steps, 6] float32, on the device.

        The columns are the partner's share of each pixel outside of the box, its share of the target, and the box, from
        top to bottom and from left to right. The box is empty for mixup. Each number has its own random stream.
        """
        config, size = self.config, self.image_size
        draws = np.zeros((steps, 6))
        if config.mixes:
            mixed = generator(seed, epoch, "mix").random(steps) < config.mixup_prob
            cut = generator(seed, epoch, "mix by").random(steps) < config.mixup_switch_prob
            cut = mixed & (cut if config.mixup and config.cutmix else config.cutmix > 0)
            blend = mixed & ~cut
            if config.mixup:
                shares = generator(seed, epoch, "mixup").beta(config.mixup, config.mixup, steps)
                draws[blend, :2] = shares[blend, None]
            if config.cutmix:
                shares = generator(seed, epoch, "cutmix").beta(config.cutmix, config.cutmix, steps)
                half = (size * np.sqrt(shares)).astype(int)[:, None] // 2
                centre = generator(seed, epoch, "cutmix box").integers(size, size=(steps, 2))
                first, last = (centre - half).clip(0), (centre + half).clip(max=size)
                draws[cut, 1] = (np.prod(last - first, axis=1) / size**2)[cut]  # what the border leaves of the box
                draws[cut, 2:] = np.stack([first, last], axis=2).reshape(steps, 4)[cut]
        return from_numpy(draws.astype(np.float32)).to(self.device)

    def __call__(self, batch: Batch, draw: Tensor) -> Batch:
        """Return ``batch`` mixed by ``draw``, a row of :meth:`draw`."""
        images, index, target = batch.images, batch.index, self.probabilities(batch.target)
        weights = None if self.weights is None else self.weights.index_select(0, batch.target)
        if self.config.mixes:
            partner, of_pixels, of_target = neighbours(len(index), index.device), draw[0], draw[1]
            share = torch.maximum(inside(draw[2:], *images.shape[-2:]).float(), of_pixels)
            images = torch.lerp(images, images.index_select(0, partner), share)
            target = torch.lerp(target, target.index_select(0, partner), of_target)
            index = torch.where(of_target > 0.5, index.index_select(0, partner), index)
            weights = None if weights is None else torch.lerp(weights, weights.index_select(0, partner), of_target)
        # The cross-entropy is linear in its target: a target times a weight is a loss times it.
        return Batch(images, target if weights is None else target * weights[:, None], index)

    def probabilities(self, labels: Tensor) -> Tensor:
        """Return the targets [B, num_classes] float32 of unmixed images with ``labels`` [B], smoothed.

        Smoothing before mixing is smoothing after it: both are weighted means.
        """
        smoothing = self.config.label_smoothing
        rest = torch.full((len(labels), self.num_classes), smoothing / self.num_classes, device=labels.device)
        # F.one_hot would read the classes on the host.
        return rest.scatter_(1, labels[:, None], 1 - smoothing + smoothing / self.num_classes)


def weights_of(config: DataConfig, labels: Tensor, num_classes: int) -> Tensor | None:
    """Return ``data.class_weights`` [num_classes] float32, with a mean of 1 over the images with ``labels``; or None.

    Raises:
        ConfigError: There is no number for each class.
    """
    given = config.class_weights
    if given == "none":
        return None
    counts = torch.bincount(labels, minlength=num_classes).double()
    if given == "balanced":
        weights = 1 / counts.clamp(min=1)
    else:
        fits = len(given) == num_classes
        check(fits, "data.class_weights", list(given), f"none, balanced or {num_classes} numbers, one for each class")
        weights = torch.tensor(given, dtype=torch.float64, device=labels.device)
    return (weights * (counts.sum() / (weights @ counts))).float()


def neighbours(count: int, device: torch.device) -> Tensor:
    """Return the place of each image's partner [count] int64: 1, 0, 3, 2, ... The last of an odd number has none."""
    return (torch.arange(count, device=device) ^ 1).clamp(max=count - 1)


def labels_of(target: Tensor) -> Tensor:
    """Return the label [N] of each image: the target itself, or the most probable class of targets [N, num_classes]."""
    return target if target.dim() == 1 else target.argmax(1)


class MixedLoader:
    """Training batches of ``loader``, mixed."""

    def __init__(self, loader: TrainLoader | FileTrainLoader, mixing: Mixing) -> None:
        self.loader, self.mixing = loader, mixing

    def __len__(self) -> int:
        """Return the steps per epoch."""
        return len(self.loader)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Iterate over the batches of ``epoch`` from step ``start`` on, bit-identical to those of the whole epoch."""
        return (deferred.make(*deferred.tensors) for deferred in self.deferred_batches(epoch, start))

    def deferred_batches(self, epoch: int, start: int = 0) -> Iterator[DeferredBatch]:
        """Iterate over the batches of :meth:`epoch` before they are mixed, and if possible before they are made."""
        if isinstance(self.loader, TrainLoader):
            batches = self.loader.deferred_batches(epoch, start)
        else:
            batches = map(DeferredBatch.of, self.loader.epoch(epoch, start))
        draws = self.mixing.draw(self.loader.seed, epoch, len(self))[start:]
        return (
            DeferredBatch(batch.index, (draw, *batch.tensors), _Mixed(self.mixing, batch.make))
            for draw, batch in zip(draws, batches, strict=True)
        )


@dataclass(frozen=True)
class _Mixed:
    """Function that makes a batch and mixes it. Equal for all batches of a loader, so that a graph serves all."""

    mixing: Mixing
    make: Callable[..., Batch]

    def __call__(self, draw: Tensor, *tensors: Any) -> Batch:
        return self.mixing(self.make(*tensors), draw)
