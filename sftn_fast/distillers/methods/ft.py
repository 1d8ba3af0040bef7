"""Factor transfer: the code of an autoencoder of the teacher's last map, predicted from the student's.

Kim et al., "Paraphrasing Complex Network: Network Compression via Factor Transfer", NeurIPS 2018.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sftn_fast import ops
from sftn_fast.data import Batch
from sftn_fast.distillers.method import Initialisation, InitTask, Method, Setup
from sftn_fast.distillers.options import Bound, Positive
from sftn_fast.distillers.registry import register
from sftn_fast.distillers.teacher_mode import teacher_mode
from sftn_fast.models import Features, StagedNet


@register("ft")
class FT(Method):
    """``ft_loss(translator(s), paraphraser(t))`` of the last stages' maps; see :func:`sftn_fast.ops.ft_loss`.

    The paraphraser learns to rebuild the teacher's map in an initialisation, and is then frozen. The translator learns
    beside the student. Two variants:

    - ``repdistiller``: mean squared error for 30 epochs, BatchNorm in the translator, factors compared as attention
      maps.
    - ``paper``, the authors' code: absolute error for 5 epochs at a learning rate of 0.1, no BatchNorm, whole factors
      compared. Its weight is 500.

    Defaults: variant ``repdistiller``, weight 200 and factors of half the channels as in RepDistiller.
    """

    family = "feature maps"
    default_weight = 200.0
    defaults_in_words: ClassVar[dict[str, str]] = {"init_epochs": "30, or 5 with variant=paper"}

    def __init__(
        self,
        setup: Setup,
        *,
        variant: Literal["repdistiller", "paper"] = "repdistiller",
        rate: Positive = 0.5,
        init_epochs: Annotated[int, Bound(0)] = 0,
    ) -> None:
        super().__init__(setup)
        setup.require_maps()
        ours, theirs = setup.student.stages[-1], setup.teacher.stages[-1]
        factors = max(1, int(theirs[0] * rate))
        self.variant = variant
        self.init_epochs = init_epochs or (30 if variant == "repdistiller" else 5)
        self.paraphraser = Paraphraser(theirs[0], factors)
        self.translator = encoder(ours[0], factors, norm=variant == "repdistiller")

    def loss(self, student: Features, teacher: Features, batch: Batch) -> Tensor:
        """See :meth:`Method.loss`."""
        with torch.no_grad():
            wanted = self.paraphraser.encoder(teacher.stages[-1])
        return ops.ft_loss(self.translator(student.stages[-1]), wanted, variant=self.variant)

    def initialisation(self, student: StagedNet, teacher: StagedNet) -> Initialisation:
        """See :meth:`Method.initialisation`."""
        distance = F.mse_loss if self.variant == "repdistiller" else F.l1_loss
        # RepDistiller uses 0.01 for resnet and wrn students; others use the student's rate (light ones: 0.01).
        small = student.name.startswith(("resnet", "wrn"))
        lr = 0.1 if self.variant == "paper" else 0.01 if small else None
        return Initialisation(Rebuild(self.paraphraser, teacher, distance), self.init_epochs, lr)


class Paraphraser(nn.Module):
    """Autoencoder of maps [N, C, H, W]; its code is the factor [N, factors, H, W]."""

    def __init__(self, channels: int, factors: int) -> None:
        super().__init__()
        self.encoder = encoder(channels, factors, norm=False)
        widths = [(factors, factors), (factors, channels), (channels, channels)]
        layers = ([nn.ConvTranspose2d(i, o, 3, 1, 1), nn.LeakyReLU(0.1, inplace=True)] for i, o in widths)
        self.decoder = nn.Sequential(*(layer for pair in layers for layer in pair))

    def forward(self, maps: Tensor) -> Tensor:
        """Return the maps, rebuilt from their factors."""
        return self.decoder(self.encoder(maps))


def encoder(channels: int, factors: int, *, norm: bool) -> nn.Sequential:
    """Return three 3x3 convolutions with leaky ReLUs, from [N, channels, H, W] to [N, factors, H, W]."""
    layers: list[nn.Module] = []
    for inputs, outputs in ((channels, channels), (channels, factors), (factors, factors)):
        layers.append(nn.Conv2d(inputs, outputs, 3, 1, 1))
        layers += [nn.BatchNorm2d(outputs)] if norm else []
        layers.append(nn.LeakyReLU(0.1, inplace=True))
    return nn.Sequential(*layers)


class Rebuild(InitTask):
    """Task that trains the paraphraser to rebuild the teacher's last map."""

    def __init__(
        self, paraphraser: Paraphraser, teacher: StagedNet, distance: Callable[[Tensor, Tensor], Tensor]
    ) -> None:
        super().__init__()
        self.paraphraser = paraphraser
        self._held, self._distance = (teacher,), distance

    def forward(self, images: Tensor, target: Tensor, index: Tensor) -> dict[str, Tensor]:
        """See :meth:`InitTask.forward`."""
        (teacher,) = self._held
        with teacher_mode(teacher):
            maps = teacher.forward_features(images).stages[-1]
        total = self._distance(self.paraphraser(maps).float(), maps.float())
        return {"total": total, "init": total.detach()}

    def finish(self) -> None:
        """See :meth:`InitTask.finish`."""
        self.paraphraser.requires_grad_(False)
