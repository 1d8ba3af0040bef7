"""The base class of tasks."""

from __future__ import annotations

from torch import Tensor, nn

from sftn_fast.models import StagedNet


class Task(nn.Module):
    """The module that a job trains. Each of its parameters that requires a gradient learns.

    It fits :class:`sftn_fast.engine.protocols.EpochTask`.

    Attributes:
        model: the network to evaluate and export. In evaluation mode it returns logits [N, num_classes].
        views: augmentations of each image in a batch; images are [N, views, C, H, W] if there are several.
        strong_view: whether the last of them is a strong one.
    """

    model: StagedNet
    views: int = 1
    strong_view: bool = False

    def forward(self, images: Tensor, target: Tensor, index: Tensor) -> dict[str, Tensor]:
        """Return the loss terms of one batch.

        Args:
            images: [N, C, H, W].
            target: labels [N] int64; or probabilities [N, num_classes] if images are mixed or labels smoothed.
            index: the images' numbers in the training data [N], int64.

        Returns:
            0-dim float32 terms by name, under autocast too. ``total`` carries the gradient, the others are detached.
        """
        raise NotImplementedError

    def begin_epoch(self, epoch: int) -> bool:
        """Prepare for ``epoch``, counted from 0, and return whether steps compute differently from now on.

        They do if they read other numbers or other tensors than the last step. A step replayed from a CUDA graph sees
        new values of the same tensors and no other change, so it is recorded again.
        """
        return False
