"""One for all: exits behind the student's stages learn the teacher's predictions, whatever the teacher's architecture.

Hao et al., "One-for-All: Bridge the Gap Between Heterogeneous Architectures in Knowledge Distillation", NeurIPS 2023.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sftn_fast.data import Batch
from sftn_fast.distillers.method import Method, Setup, sum_of
from sftn_fast.distillers.options import Positive
from sftn_fast.distillers.registry import register
from sftn_fast.models import Features
from sftn_fast.models.layers import conv_norm_relu
from sftn_fast.models.staged import Shape
from sftn_fast.nn.precision import in_float32


@register("ofa")
class OFA(Method):
    """``sum over logits and exits z of mean(-sum(((p_t + 1_y)^eps - 1_y) log softmax(z)))``; 1_y is 1 at the label.

    An exit halves a stage's map as often as stages follow it, by separable convolutions, and classifies its mean. The
    exits learn, and are no part of the student. Of the teacher only the logits are read, so it may be a network without
    maps. Exponents above 1 give more weight to the label.

    Defaults: exponent 1 as in the authors' example for CIFAR-100, whose networks see images of 224 pixels; for ImageNet
    it has 1.5. All terms have weight 1, as there. BatchNorm and ReLU after each separable convolution are ours.
    """

    needs_features = False

    def __init__(self, setup: Setup, *, eps: Positive = 1.0) -> None:
        super().__init__(setup)
        stages, widest = setup.student.stages, max(setup.student.pooled, setup.teacher.pooled)
        for number, shape in enumerate(stages, start=1):
            if len(shape) != 3:
                given = f"stage {number} of the student gives [N, {', '.join(map(str, shape))}]"
                raise ValueError(f"its maps must be [N, C, H, W], and {given}")
        self.eps, classes = eps, setup.student.net.num_classes
        self.exits = nn.ModuleList(
            make_exit(shape, len(stages) - number, widest, classes) for number, shape in enumerate(stages, start=1)
        )

    def loss(self, student: Features, teacher: Features, batch: Batch) -> Tensor:
        """See :meth:`Method.loss`."""
        predictions = [student.logits, *(each(x) for each, x in zip(self.exits, student.stages, strict=True))]
        return sum_of(ofa_loss(logits, teacher.logits, batch.target, self.eps) for logits in predictions)

    def describe(self) -> list[str]:
        """See :meth:`Method.describe`."""
        return [f"teacher's predictions with the student's and those of {len(self.exits)} exits"]


def make_exit(shape: Shape, halvings: int, width: int, num_classes: int) -> nn.Sequential:
    """Return a classifier of a map (C, H, W), which is halved ``halvings`` times and ends with ``width`` channels."""
    channels, layers = shape[0], []
    for number in range(halvings):
        wider = width if number == halvings - 1 else 2 * channels
        depthwise = nn.Conv2d(channels, channels, 3, 2, 1, groups=channels, bias=False)
        layers += [depthwise, *conv_norm_relu(channels, wider, 1)]
        channels = wider
    if not halvings:
        layers = [nn.Conv2d(channels, width, 1)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, num_classes))


@in_float32
def ofa_loss(logits: Tensor, teacher_logits: Tensor, target: Tensor, eps: float) -> Tensor:
    """Return the loss of logits [N, C] with labels [N], 0-dim."""
    label = torch.zeros_like(logits).scatter_(1, target[:, None], 1.0)  # one_hot would read the classes on the host
    weights = (teacher_logits.softmax(1) + label) ** eps - label
    return -(weights * logits.log_softmax(1)).sum(1).mean()
