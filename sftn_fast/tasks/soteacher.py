"""Training of a teacher with the two regularisers of SoTeacher."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from sftn_fast.config import SoTeacherConfig
from sftn_fast.distillers.gather import whole_batch
from sftn_fast.distillers.network_checks import check_classes
from sftn_fast.models import StagedNet
from sftn_fast.tasks.base import Task


class SoTeacherTask(Task):
    """Student-oriented training: terms ``total``, ``ce``, ``lipschitz`` and ``consistency``.

    ``total = ce + a lipschitz + b(e) consistency``. ``consistency`` is the squared distance of an image's prediction
    from the mean of its predictions in all earlier epochs, summed over the classes; it is 0 for an image that was not
    seen before. Its weight b rises linearly to the configured one in the last epoch.

    Source: Dong et al., "Toward Student-Oriented Teacher Network Training for Knowledge Distillation", ICLR 2024, and
    the authors' code. There all images are seen in every epoch; here each image has a count of its own, since an epoch
    leaves out the images of a last, incomplete batch.

    Args:
        model: the teacher.
        config: weights.
        num_samples: number of training images.
        epochs: length of the training.

    Raises:
        ValueError: the network has one class.
    """

    means: Tensor
    counts: Tensor
    weight: Tensor

    def __init__(self, model: StagedNet, config: SoTeacherConfig, *, num_samples: int, epochs: int) -> None:
        super().__init__()
        check_classes(model)
        self.model, self.config, self.epochs = model, config, epochs
        self.register_buffer("means", torch.zeros(num_samples, model.num_classes))
        self.register_buffer("counts", torch.zeros(num_samples))
        # A tensor, so that a step replayed from a CUDA graph reads its present value.
        self.register_buffer("weight", torch.zeros(()))

    def begin_epoch(self, epoch: int) -> bool:
        """Set the weight of the consistency, see :meth:`Task.begin_epoch`."""
        self.weight.fill_(self.config.consistency * (epoch + 1) / self.epochs)
        return False

    def forward(self, images: Tensor, target: Tensor, index: Tensor) -> dict[str, Tensor]:
        """Return the terms, see :meth:`Task.forward`."""
        logits = self.model(images).float()
        ce, lipschitz = F.cross_entropy(logits, target), lipschitz_bound(self.model)
        consistency = self._consistency(logits.softmax(1), index)
        total = ce + self.config.lipschitz * lipschitz + self.weight * consistency
        terms = {"ce": ce, "lipschitz": lipschitz, "consistency": consistency}
        return {"total": total} | {name: term.detach() for name, term in terms.items()}

    def _consistency(self, predictions: Tensor, index: Tensor) -> Tensor:
        """Return the mean distance of ``predictions`` [N, C] from the images' means, then include them in these."""
        seen = self.counts[index] > 0
        loss = ((predictions - self.means[index]).square().sum(1) * seen).mean()
        if self.training:
            with torch.no_grad():
                rows, new = whole_batch(index), whole_batch(predictions.detach())
                counts = self.counts[rows] + 1
                self.counts[rows] = counts
                self.means[rows] += (new - self.means[rows]) / counts[:, None]
        return loss


def lipschitz_bound(net: nn.Module) -> Tensor:
    """Return the sum over layers of the authors' bounds of the Lipschitz constant, 0-dim.

    These are the sum of absolute weights of a convolution, the largest ``|weight| / sqrt(variance + eps)`` of a
    BatchNorm, and the largest column sum of absolute weights of a linear layer.
    """
    return torch.stack(list(_bounds(net))).sum()


def _bounds(net: nn.Module) -> Iterator[Tensor]:
    for layer in net.modules():
        weight = getattr(layer, "weight", None)
        if weight is None:
            continue
        if isinstance(layer, _ConvNd):
            yield weight.abs().sum()
        elif isinstance(layer, nn.Linear):
            yield weight.abs().sum(0).max()
        elif isinstance(layer, _BatchNorm) and layer.running_var is not None:
            yield (weight.abs() / (layer.running_var + layer.eps).sqrt()).max()
