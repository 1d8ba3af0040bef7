"""Overhaul of feature distillation: maps before their ReLU, with little weight on values that the teacher's ReLU drops.

Heo et al., "A Comprehensive Overhaul of Feature Distillation", ICCV 2019.
"""

from __future__ import annotations

from torch import Tensor, nn

from sftn_fast import ops
from sftn_fast.data import Batch
from sftn_fast.distillers.method import PairedMethod, Setup, sum_of
from sftn_fast.distillers.registry import register
from sftn_fast.models import Features
from sftn_fast.nn.precision import average_pooled


@register("oh")
class OH(PairedMethod):
    """``sum over pairs i = 1..L of 2^(i - L) oh_loss(connector_i(s_i), t_i, margin_i)``.

    :func:`sftn_fast.ops.oh_loss` is a squared distance to ``t' = max(t, margin)``, counted where ``s > t'`` or
    ``t' > 0``. The connector, a 1x1 convolution and a BatchNorm, learns. The margins follow from the BatchNorm before
    each of the teacher's ReLUs. A channel that passed a ReLU already, as half of ShuffleV2's did, has margin 0.

    If the maps differ in size, the teacher's is average-pooled to the student's, as in mdistiller; the authors compare
    equal sizes only. The teacher stays in evaluation mode; in the authors' code its statistics drift.

    Defaults: weight 1e-3 as in the authors' code for CIFAR. For ImageNet they use 1e-4.
    """

    family = "feature maps"
    default_weight = 1e-3
    needs_preacts = True

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        try:
            setup.teacher.net.preact_affines()
        except ValueError as error:
            raise ValueError(f"oh needs the BatchNorms before the teacher's ReLUs: {error}") from None
        # A tuple, so that nn.Module does not register the teacher.
        self._held = (setup.teacher.net,)
        self.connectors = nn.ModuleList(_connector(pair.student_shape[0], pair.teacher_shape[0]) for pair in self.pairs)

    def margins(self) -> list[Tensor]:
        """Compute the margin [C] of each pair from the teacher's current BatchNorm parameters."""
        affines = self._held[0].preact_affines()
        return [ops.oh_margin(*affines[pair.teacher_stage - 1]) for pair in self.pairs]

    def loss(self, student: Features, teacher: Features, batch: Batch) -> Tensor:
        """See :meth:`Method.loss`."""
        maps = self.preact_maps(student, teacher)
        compared = zip(self.connectors, maps, self.margins(), strict=True)
        losses = [_loss(connector(s), t, margin) for connector, (s, t), margin in compared]
        return sum_of(2.0 ** (i - len(maps) + 1) * loss for i, loss in enumerate(losses))


def _loss(mapped: Tensor, teacher: Tensor, margin: Tensor) -> Tensor:
    if teacher.shape[2:] != mapped.shape[2:]:
        teacher = average_pooled(teacher, (mapped.shape[2], mapped.shape[3]))
    return ops.oh_loss(mapped, teacher, margin)


def _connector(channels: int, teacher_channels: int) -> nn.Sequential:
    convolution = nn.Conv2d(channels, teacher_channels, 1, bias=False)
    nn.init.normal_(convolution.weight, std=(2 / teacher_channels) ** 0.5)
    return nn.Sequential(convolution, nn.BatchNorm2d(teacher_channels))
