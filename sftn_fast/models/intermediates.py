"""Networks of timm that can't be cut into stages, such as transformers with a class token, as staged ones.

What passes from block to block is more than the blocks' maps: a class token, or positions that all blocks read. timm's
``forward_intermediates`` gives the maps [N, C, H, W] beside the logits. So such a network can teach and be distilled,
and it can be SFTN's teacher, but none of its ends runs on a map alone: it has no branches to offer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sftn_fast.models.staged import Features, StagedNet
from sftn_fast.models.wrap import names_of

STAGES = 4
"""Number of stages of a network whose blocks all give maps of one size."""


class VectorHead(nn.Module):
    """Classifier of a vector that the rest of the network has pooled."""

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, pooled: Tensor) -> Tensor:
        """Return logits [N, num_classes] of the pooled vectors [N, D]."""
        return self.classifier(pooled)


class IntermediatesNet(StagedNet):
    """A network of timm's that gives its maps beside its logits.

    The stem is its first map. The last map of each size is a stage, or a fourth of the blocks if all have one size.

    Args:
        net: The network. Its classifier moves into the head.
        classifier: Names of the classifier, or of several whose logits are averaged.
        maps: Indices of the maps that are stem and stages, as timm counts them.
        num_classes: Classes.
        in_channels: Channels of the images.
    """

    runs_from_stages: ClassVar[bool] = False

    def __init__(
        self, net: nn.Module, classifier: Sequence[str], maps: Sequence[int], *, num_classes: int, in_channels: int
    ) -> None:
        originals = net.state_dict(keep_vars=True)
        alone = len(classifier) == 1
        head = VectorHead(net.get_submodule(classifier[0])) if alone else nn.Identity()
        if alone:
            net.set_submodule(classifier[0], nn.Identity())
        super().__init__(nn.Identity(), [], head, num_classes=num_classes, in_channels=in_channels)
        self.body: Any = net
        self.maps = tuple(maps)
        self.wrapped_names = names_of(originals, self)
        if not alone:
            self.head_names = tuple(f"body.{name}." for name in classifier)

    @property
    def num_stages(self) -> int:
        """Number of stages, S."""
        return len(self.maps) - 1

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [N, num_classes] of images [N, in_channels, H, W]."""
        x = self.own_images(x)
        return self.head(self.body.forward_head(self.body.forward_features(x)))

    def forward_features(self, x: Tensor, *, preact: bool = False) -> Features:
        """See :meth:`StagedNet.forward_features`."""
        if preact:
            self._require_preacts()
        x = self.own_images(x)
        taken = sorted(set(self.maps))
        last, given = self.body.forward_intermediates(x, indices=taken, output_fmt="NCHW")
        stem, *stages = (given[taken.index(number)] for number in self.maps)
        if isinstance(self.head, VectorHead):
            pooled = self.body.forward_head(last)
            return Features(stem, stages, None, pooled, self.head(pooled))
        pooled = self.body.forward_head(last, pre_logits=True)
        return Features(stem, stages, None, pooled, self.body.forward_head(last))

    def _require_preacts(self) -> None:
        raise ValueError(f"{self.name} has no pre-activations")

    def _stages_from(self, i: int) -> list[nn.Module]:
        raise ValueError(
            f"{self.name} can't run from the map of a stage: its blocks pass on more than a map, such as a class "
            "token. It can teach, be distilled, and become a student-friendly teacher, but offers no branches"
        )

    def input_shape(self, i: int, image_size: int) -> tuple[int, int, int]:
        """Return (C, H, W) of the map before stage ``i``; S + 1 stands for the last map."""
        if not 1 <= i <= self.num_stages + 1:
            raise ValueError(f"stage must be from 1 to {self.num_stages + 1}, got {i}")
        return self._shapes(image_size)[i - 1]


def choose_maps(shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """Return the indices of the maps that are stem and stages, out of the ``shapes`` [N, C, H, W] of all of them."""
    count, sizes = len(shapes), [shape[2:] for shape in shapes]
    if len(set(sizes)) == 1:
        stages = sorted({-(-count * number // STAGES) - 1 for number in range(1, STAGES + 1)})
    else:
        stages = [i for i in range(count) if i == count - 1 or sizes[i] != sizes[i + 1]]
    return (0, *(stages[1:] if stages[0] == 0 and len(stages) > STAGES else stages))


def shapes_of_maps(net: Any, images: Tensor) -> list[tuple[int, ...]]:
    """Return the shapes of all maps that ``net`` gives for ``images``; none if it gives something else than maps."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        given = net.forward_intermediates(images, output_fmt="NCHW", intermediates_only=True)
    shapes = [tuple(map_.shape) if isinstance(map_, Tensor) else () for map_ in given]
    square = all(len(shape) == 4 and shape[0] == len(images) and shape[2] == shape[3] for shape in shapes)
    return shapes if square else []
