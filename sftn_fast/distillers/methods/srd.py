"""A simple recipe: pooled vectors, normalised over the batch and projected linearly, at a logarithmic distance.

Miles & Mikolajczyk, "Understanding the Role of the Projector in Knowledge Distillation", AAAI 2024.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import orthogonal

from sftn_fast import ops
from sftn_fast.data import Batch
from sftn_fast.distillers.method import RelationalMethod, Setup
from sftn_fast.distillers.options import NonNegative, Positive
from sftn_fast.distillers.registry import register
from sftn_fast.models import Features
from sftn_fast.nn.precision import in_float32

EPS = 1e-4
"""Of the BatchNorms, as in the authors' code."""


@register("srd")
class SRD(RelationalMethod):
    """``features log sum |bn(P s) - bn(t)|^4 + kd KL(t || s)``; the sum runs over images and dimensions.

    s and t are the pooled vectors, bn normalises over the batch without parameters. The projector P, a linear layer,
    learns. With ``projector=vkd`` P is orthogonal and has no bias, and the first term is
    ``features mean(smooth_l1(P s - ln(t)))``, where ln normalises each vector (Miles et al., "VkD: Improving Knowledge
    Distillation using Orthogonal Projections", CVPR 2024).

    Defaults: ``features=2``, ``kd=1`` and temperature 1 as in the authors' code for ImageNet.
    """

    family = "vectors"

    def __init__(
        self,
        setup: Setup,
        *,
        projector: Literal["linear", "vkd"] = "linear",
        features: NonNegative = 2.0,
        kd: NonNegative = 1.0,
        temperature: Positive = 1.0,
    ) -> None:
        super().__init__(setup)
        self.features, self.kd, self.temperature = features, kd, temperature
        ours, theirs = setup.student.pooled, setup.teacher.pooled
        self.distance = log_distance if projector == "linear" else normalised_distance
        layer = nn.Linear(ours, theirs, bias=projector == "linear")
        self.projector = layer if projector == "linear" else orthogonal(layer)

    def loss(self, student: Features, teacher: Features, batch: Batch) -> Tensor:
        """See :meth:`Method.loss`."""
        apart = self.distance(*self.together(self.projector(student.pooled), teacher.pooled))
        return self.features * apart + self.kd * ops.kd_loss(student.logits, teacher.logits, self.temperature)


@in_float32
def log_distance(projected: Tensor, teacher: Tensor) -> Tensor:
    """Return the logarithm of the summed fourth powers of the differences of two [N, D], normalised over the batch."""
    ours, theirs = (F.batch_norm(x, None, None, training=True, eps=EPS) for x in (projected, teacher))
    total = (ours - theirs).pow(4).sum()
    return total.clamp(min=torch.finfo(total.dtype).tiny).log()  # finite also for equal vectors


@in_float32
def normalised_distance(projected: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean smooth L1 distance of [N, D] to the teacher's [N, D], each of whose rows is normalised."""
    return F.smooth_l1_loss(projected, F.layer_norm(teacher, teacher.shape[1:]))
