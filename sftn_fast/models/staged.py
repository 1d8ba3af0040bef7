"""The shape that everything rests on: stem -> stage 1 .. stage S -> head."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from sftn_fast.models.copying import copy_network, copy_without_data

Shape = tuple[int, int, int]


@dataclass
class Features:
    """What one pass through a :class:`StagedNet` saw."""

    stem: Tensor
    """Output of the stem [N, C, H, W]."""
    stages: list[Tensor]
    """Output of each of the S stages [N, C, H, W]."""
    preacts: list[Tensor] | None
    """The same before their ReLU, as the network's family defines it; None unless asked for."""
    pooled: Tensor
    """What the classifier takes [N, D]."""
    logits: Tensor
    """[N, num_classes]."""

    def first(self, count: int) -> Features:
        """Those of the first ``count`` images."""
        if count == len(self.logits):
            return self
        preacts = None if self.preacts is None else [x[:count] for x in self.preacts]
        stages = [x[:count] for x in self.stages]
        return Features(self.stem[:count], stages, preacts, self.pooled[:count], self.logits[:count])


class PreactModule(nn.Module):
    """A stage, or the block at its end, that can also give its map from before the last ReLU."""

    def forward(self, x: Tensor) -> Tensor:
        """Output [N, C', H', W'] for the input [N, C, H, W]."""
        return self.forward_preact(x)[0]

    def forward_preact(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Output and pre-activation, both [N, C', H', W']."""
        raise NotImplementedError

    def preact_norm(self) -> nn.BatchNorm2d:
        """The BatchNorm that writes the pre-activation.

        Raises:
            ValueError: No single BatchNorm does.
        """
        raise NotImplementedError


class Stage(nn.Sequential):
    """Blocks in sequence, of which the last gives the pre-activation."""

    def forward_preact(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """See :meth:`PreactModule.forward_preact`."""
        *body, last = self
        for block in body:
            x = block(x)
        return cast(PreactModule, last).forward_preact(x)

    def preact_norm(self) -> nn.BatchNorm2d:
        """See :meth:`PreactModule.preact_norm`."""
        return cast(PreactModule, self[-1]).preact_norm()


class Head(nn.Module):
    """Global average pooling and a linear classifier.

    Args:
        features: Channels that are pooled, D.
        num_classes: Classes.
        expand: Layers before the pooling, from the last stage's channels to D.
    """

    def __init__(self, features: int, num_classes: int, *, expand: nn.Module | None = None) -> None:
        super().__init__()
        self.expand = expand
        self.fc = nn.Linear(features, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [N, num_classes] of the last stage's output [N, C, H, W]."""
        return self.forward_pooled(x)[1]

    def forward_pooled(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Pooled vector [N, D] and logits [N, num_classes]."""
        if self.expand is not None:
            x = self.expand(x)
        return self.classify(x)

    def classify(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Pooled vector [N, D] and logits [N, num_classes] of the map [N, D, H, W] that is pooled."""
        pooled = nn.functional.adaptive_avg_pool2d(x, 1).flatten(1)
        return pooled, self.fc(pooled)


class Tail(nn.Module):
    """The end of a staged network: some last stages (perhaps none) and the head."""

    def __init__(self, stages: list[nn.Module], head: nn.Module) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        """Logits [N, num_classes] of the first stage's input [N, C, H, W]."""
        for stage in self.stages:
            x = stage(x)
        return self.head(x)


class StagedNet(nn.Module):
    """An image classifier, cut into a stem, S stages and a head. Stages count from 1.

    Args:
        stem: [N, in_channels, H, W] to the first stage's input.
        stages: One module a stage, each taking what the one before gives.
        head: The last stage's output to logits; ``head.forward_pooled`` gives the pooled vector too.
        num_classes: Classes.
        in_channels: Channels of the images.
        name: Name under which :func:`sftn_fast.models.build` makes this network again, if it does.
    """

    default_lr: ClassVar[float] = 0.05
    """Learning rate that the family is usually trained with, for SGD and batches of 64 (256 for ImageNet's)."""

    cpu_channels_last: ClassVar[bool] = True
    """Whether a CPU trains the family faster on maps that lie as NHWC, as measured: all but VGG are."""

    foreign_names: ClassVar[tuple[tuple[str, str], ...]] = ()
    """Regular expressions and replacements that turn the names in a RepDistiller checkpoint into this network's."""

    origins: ClassVar[tuple[str, ...]] = ()
    """Projects whose names the network's tensors have by ``foreign_names`` or ``wrapped_names``."""

    wrapped_names: Mapping[str, str] = MappingProxyType({})
    """Of a network made of another's modules: this network's names of tensors by the other's."""

    __jit_ignored_attributes__: ClassVar = ["wrapped_names"]  # torch.jit.script has no such type

    def __init__(
        self,
        stem: nn.Module,
        stages: list[nn.Module],
        head: nn.Module,
        *,
        num_classes: int,
        in_channels: int,
        name: str = "",
    ) -> None:
        super().__init__()
        self.name = name
        self.num_classes = num_classes
        self.in_channels = in_channels
        self.stem = stem
        self.stages = nn.ModuleList(stages)
        self.head = head

    @property
    def num_stages(self) -> int:
        """S."""
        return len(self.stages)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [N, num_classes] of images [N, in_channels, H, W]."""
        x = self.stem(x)
        for stage in self.stages:  # as forward_from(1, ...), in terms that torch.jit.script knows too
            x = stage(x)
        return self.head(x)

    def forward_from(self, i: int, x: Tensor) -> Tensor:
        """Logits [N, num_classes] from what stage ``i`` takes, through stages i..S and the head.

        Raises:
            ValueError: ``i`` is not in 1 .. S + 1; S + 1 is the head alone.
        """
        for stage in self._stages_from(i):
            x = stage(x)
        return self.head(x)

    def forward_features(self, x: Tensor, *, preact: bool = False) -> Features:
        """Everything a pass computes; each layer is evaluated once, also with ``preact``.

        Args:
            x: Images [N, in_channels, H, W].
            preact: Also give the stages' maps before their ReLU.

        Raises:
            ValueError: ``preact`` is asked of a network whose stages can't tell.
        """
        if preact:
            self._require_preacts()
        stem = x = self.stem(x)
        outputs, preacts = [], []
        for stage in self.stages:
            if preact:
                x, before = cast(PreactModule, stage).forward_preact(x)
                preacts.append(before)
            else:
                x = stage(x)
            outputs.append(x)
        pooled, logits = cast(Head, self.head).forward_pooled(x)
        return Features(stem, outputs, preacts if preact else None, pooled, logits)

    def preact_norms(self) -> list[nn.BatchNorm2d]:
        """The BatchNorm before each stage's ReLU, whose parameters describe the pre-activations' distribution.

        Source: the layers that Heo et al., "A Comprehensive Overhaul of Feature Distillation", take margins from.

        Raises:
            ValueError: This family has none.
        """
        self._require_preacts()
        return [cast(PreactModule, stage).preact_norm() for stage in self.stages]

    def preact_affines(self) -> list[tuple[Tensor, Tensor]]:
        """Scale and shift [C] of the normal distribution that each channel of each pre-activation follows.

        Those of :meth:`preact_norms`, and zeros for a channel that was through a ReLU before.

        Raises:
            ValueError: This family has none.
        """
        return [(norm.weight.detach(), norm.bias.detach()) for norm in self.preact_norms()]

    def own_name(self, name: str) -> str:
        """This network's name of the tensor that a checkpoint of the same network from elsewhere calls ``name``."""
        if name in self.wrapped_names:
            return self.wrapped_names[name]
        for pattern, replacement in self.foreign_names:
            name = re.sub(pattern, replacement, name)
        return name

    def tail(self, i: int) -> nn.Module:
        """A deep copy, with parameters of its own, of stages i..S and the head, called as ``forward_from(i, .)``."""
        return copy_network(Tail(self._stages_from(i), self.head))

    def feature_shapes(self, image_size: int) -> list[Shape]:
        """(C, H, W) of each stage's output for square images; leaves parameters, statistics and random state alone."""
        return self._shapes(image_size)[1:]

    def input_shape(self, i: int, image_size: int) -> Shape:
        """(C, H, W) of what stage ``i`` takes; S + 1 is what the head takes."""
        self._stages_from(i)
        return self._shapes(image_size)[i - 1]

    def _require_preacts(self) -> None:
        if not all(hasattr(stage, "forward_preact") for stage in self.stages):
            raise ValueError(
                f"{self.name} has no pre-activations: its stages can't tell their maps from before the last ReLU"
            )

    def _stages_from(self, i: int) -> list[nn.Module]:
        if not 1 <= i <= self.num_stages + 1:
            raise ValueError(f"stage must be from 1 to {self.num_stages + 1} (the head alone), got {i}")
        return list(self.stages)[i - 1 :]

    def probe(self, image_size: int) -> Features:
        """What one square image of ``image_size`` pixels gives, in shapes alone; leaves parameters, statistics and
        random state alone.
        """
        try:
            return _pass(copy_without_data(self), image_size, torch.device("meta"))
        except Exception:  # a layer looks at values, as those do that learn to quantise
            return _pass(copy_network(self), image_size, next(self.parameters()).device)

    def _shapes(self, image_size: int) -> list[Shape]:
        """Shapes of the stem's and the stages' outputs.

        Raises:
            ValueError: One of them is no map [N, C, H, W].
        """
        seen = self.probe(image_size)
        for number, map_ in enumerate((seen.stem, *seen.stages)):
            if map_.dim() != 4:
                place = f"stage {number}" if number else "the stem"
                raise ValueError(f"{place} of {self.name} gives {list(map_.shape)}, which is no map [N, C, H, W]")
        return [cast(Shape, tuple(map_.shape[1:])) for map_ in (seen.stem, *seen.stages)]


def _pass(net: StagedNet, image_size: int, device: torch.device) -> Features:
    dtype = next(net.parameters()).dtype
    images = torch.zeros(1, net.in_channels, image_size, image_size, device=device, dtype=dtype)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        return net.eval().forward_features(images)
