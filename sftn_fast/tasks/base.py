"""The base class of what a job trains."""

from __future__ import annotations

from torch import Tensor, nn

from sftn_fast.models import StagedNet


class Task(nn.Module):
    """The module that a stage trains. Each of its parameters that requires a gradient learns.

    Attributes:
        model: What is evaluated and exported; in evaluation mode it gives logits [N, num_classes].
    """

    model: StagedNet

    def forward(self, images: Tensor, target: Tensor, index: Tensor) -> dict[str, Tensor]:
        """Loss of one batch.

        Args:
            images: [N, C, H, W].
            target: Labels [N], int64.
            index: The images' numbers in the training data [N], int64.

        Returns:
            0-dim float32 terms by name, under autocast too. ``total`` carries the gradient, the others are detached.
        """
        raise NotImplementedError

    def begin_epoch(self, epoch: int) -> bool:
        """Told by the engine before each epoch, counted from 0; whether a step computes otherwise than before it.

        That is: with other numbers or tensors than those that the last step read. A step replayed from a CUDA graph
        knows of no change but in the values of the same tensors, and is captured anew.
        """
        return False
