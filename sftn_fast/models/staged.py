"""Base class of all networks: stem -> stage 1 .. stage S -> head."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from sftn_fast.models.copying import copy_network, copy_without_data, copy_without_hooks
from sftn_fast.models.own_input import OwnInput

Shape = tuple[int, int, int]
"""(C, H, W) of a map [N, C, H, W]."""
SMALL = 64
"""Side in pixels up to which a network on the CPU finds shapes by a real pass: on tensors without data torch computes
shapes in Python, and imports its compiler for that, which takes longer."""


@dataclass
class Features:
    """Maps, pooled vector and logits of one pass through a :class:`StagedNet`."""

    stem: Tensor
    """Output of the stem [N, C, H, W]."""
    stages: list[Tensor]
    """Output of each of the S stages [N, C, H, W]."""
    preacts: list[Tensor] | None
    """The same maps before their ReLU, as the network's family defines it; None unless requested."""
    pooled: Tensor
    """Input of the classifier [N, D]."""
    logits: Tensor
    """Output of the classifier [N, num_classes]."""
    unpooled: Tensor | None = None
    """Map [N, D, H, W] whose mean over the image is ``pooled``; None from a head that does not provide it."""

    def first(self, count: int) -> Features:
        """Return the features of the first ``count`` images."""
        if count == len(self.logits):
            return self
        preacts = None if self.preacts is None else [x[:count] for x in self.preacts]
        stages = [x[:count] for x in self.stages]
        unpooled = None if self.unpooled is None else self.unpooled[:count]
        return Features(self.stem[:count], stages, preacts, self.pooled[:count], self.logits[:count], unpooled)


class PreactModule(nn.Module):
    """A stage, or the block at its end, that can also return its map before the last ReLU."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the output [N, C', H', W'] for the input [N, C, H, W]."""
        return self.forward_preact(x)[0]

    def forward_preact(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return output and pre-activation, both [N, C', H', W']."""
        raise NotImplementedError

    def preact_norm(self) -> nn.BatchNorm2d:
        """Return the BatchNorm that writes the pre-activation.

        Raises:
            ValueError: No single BatchNorm does.
        """
        raise NotImplementedError


class Stage(nn.Sequential):
    """Blocks in sequence; the last one returns the pre-activation."""

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
        features: Channels of the pooled map, D.
        num_classes: Classes.
        expand: Layers before the pooling, from the last stage's channels to D.
    """

    def __init__(self, features: int, num_classes: int, *, expand: nn.Module | None = None) -> None:
        super().__init__()
        self.expand = expand
        self.fc = nn.Linear(features, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [N, num_classes] of the last stage's output [N, C, H, W]."""
        return self.forward_pooled(x)[1]

    def forward_pooled(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the pooled vector [N, D] and logits [N, num_classes]."""
        return self.classify(self.forward_unpooled(x))

    def forward_unpooled(self, x: Tensor) -> Tensor:
        """Return the map [N, D, H, W] that is pooled."""
        return x if self.expand is None else self.expand(x)

    def classify(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Pool a map [N, D, H, W]; return the pooled vector [N, D] and logits [N, num_classes]."""
        pooled = nn.functional.adaptive_avg_pool2d(x, 1).flatten(1)
        return pooled, self.fc(pooled)


class Tail(nn.Module):
    """The end of a staged network: its last stages, possibly none, and the head."""

    def __init__(self, stages: list[nn.Module], head: nn.Module) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [N, num_classes] for an input [N, C, H, W] of the first of its stages."""
        for stage in self.stages:
            x = stage(x)
        return self.head(x)


class StagedNet(nn.Module):
    """An image classifier, cut into a stem, S stages and a head. Stages count from 1.

    Args:
        stem: Module from images [N, in_channels, H, W] to the first stage's input.
        stages: One module a stage, each of which takes the output of the one before.
        head: Module from the last stage's output to logits; ``head.forward_pooled`` returns the pooled vector too. With
            ``forward_unpooled`` and ``classify``, as :class:`Head` has them, methods can use the map that it pools.
        num_classes: Classes.
        in_channels: Channels of the images.
        name: Name under which :func:`sftn_fast.models.build` makes this network, or empty.
    """

    default_lr: ClassVar[float] = 0.05
    """Usual learning rate of the family, for SGD and batches of 64 (256 for ImageNet's networks)."""

    cpu_channels_last: ClassVar[bool] = True
    """Whether a CPU trains the family faster on maps in channels-last format; measured to be so for all but VGG."""

    foreign_names: ClassVar[tuple[tuple[str, str], ...]] = ()
    """Regular expressions and replacements that translate the names in a RepDistiller checkpoint to this network's."""

    origins: ClassVar[tuple[str, ...]] = ()
    """Projects whose names ``foreign_names`` or ``wrapped_names`` translate."""

    wrapped_names: Mapping[str, str] = MappingProxyType({})
    """This network's names of tensors by another network's, for a network that is made of the other one's modules."""

    arguments: Mapping[str, Any] = MappingProxyType({})
    """Arguments by which :func:`sftn_fast.models.build` makes this network, beside its name."""

    runs_from_stages: ClassVar[bool] = True
    """Whether the map of a stage is all that the stages after it need; if not, there is no :meth:`tail`."""

    head_names: tuple[str, ...] = ("head.",)
    """What the names of the classifier's tensors begin with."""

    undecayed: frozenset[str] = frozenset()
    """Names of parameters without weight decay, such as positions."""

    # torch.jit.script does not support the types.
    __jit_ignored_attributes__: ClassVar = ["wrapped_names", "arguments", "undecayed"]

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
        self.own_input: OwnInput | None = None
        """Change of the images, for a network that knows another mean and deviation than the data's."""

    @property
    def num_stages(self) -> int:
        """Number of stages, S."""
        return len(self.stages)

    def own_images(self, x: Tensor) -> Tensor:
        """Return images [N, in_channels, H, W] by the mean and deviation that the network was made to see."""
        return x if self.own_input is None else self.own_input(x)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [N, num_classes] of images [N, in_channels, H, W]."""
        x = self.stem(self.own_images(x))
        for stage in self.stages:  # not forward_from(1, x), which torch.jit.script does not support
            x = stage(x)
        return self.head(x)

    def forward_from(self, i: int, x: Tensor) -> Tensor:
        """Run stages ``i`` to S and the head on ``x``, the input of stage ``i``; return logits [N, num_classes].

        Raises:
            ValueError: ``i`` is not from 1 to S + 1; S + 1 runs the head alone.
        """
        for stage in self._stages_from(i):
            x = stage(x)
        return self.head(x)

    def forward_features(self, x: Tensor, *, preact: bool = False) -> Features:
        """Run the network on images and return all features; each layer runs once, also with ``preact``.

        Args:
            x: Images [N, in_channels, H, W].
            preact: Also return the stages' maps before their ReLU.

        Raises:
            ValueError: ``preact`` is set, and the network's stages do not provide these maps.
        """
        if preact:
            self._require_preacts()
        stem = x = self.stem(self.own_images(x))
        outputs, preacts = [], []
        for stage in self.stages:
            if preact:
                x, before = cast(PreactModule, stage).forward_preact(x)
                preacts.append(before)
            else:
                x = stage(x)
            outputs.append(x)
        head, unpooled = cast(Head, self.head), None
        if _gives_unpooled(head):
            unpooled = head.forward_unpooled(x)
            pooled, logits = head.classify(unpooled)
        else:
            pooled, logits = head.forward_pooled(x)
        return Features(stem, outputs, preacts if preact else None, pooled, logits, unpooled)

    def preact_norms(self) -> list[nn.BatchNorm2d]:
        """Return the BatchNorm before each stage's ReLU; its parameters describe the pre-activations' distribution.

        Source: Heo et al., "A Comprehensive Overhaul of Feature Distillation", compute margins from these layers.

        Raises:
            ValueError: The family has no such layers.
        """
        self._require_preacts()
        return [cast(PreactModule, stage).preact_norm() for stage in self.stages]

    def preact_affines(self) -> list[tuple[Tensor, Tensor]]:
        """Return scale and shift [C] of the normal distribution of each channel, for each stage's pre-activation.

        They are those of :meth:`preact_norms`, and zeros for a channel that passed a ReLU before.

        Raises:
            ValueError: The family has no such layers.
        """
        return [(norm.weight.detach(), norm.bias.detach()) for norm in self.preact_norms()]

    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters that don't decay where norms and biases don't."""
        return set(self.undecayed)

    def own_name(self, name: str) -> str:
        """Translate the name of a tensor in a checkpoint from another project to this network's name."""
        if name in self.wrapped_names:
            return self.wrapped_names[name]
        for pattern, replacement in self.foreign_names:
            name = re.sub(pattern, replacement, name)
        return name

    def tail(self, i: int) -> nn.Module:
        """Return a deep copy of stages ``i`` to S and the head; ``tail(i)(x)`` equals ``forward_from(i, x)``."""
        return copy_network(Tail(self._stages_from(i), self.head))

    def feature_shapes(self, image_size: int) -> list[Shape]:
        """Return (C, H, W) of each stage's output for square images, without changing the network or random state."""
        return self._shapes(image_size)[1:]

    def input_shape(self, i: int, image_size: int) -> Shape:
        """Return (C, H, W) of the input of stage ``i``, or of the head for S + 1."""
        self._stages_from(i)
        return self._shapes(image_size)[i - 1]

    def _require_preacts(self) -> None:
        if not all(hasattr(stage, "forward_preact") for stage in self.stages):
            raise ValueError(
                f"{self.name} has no pre-activations: its stages do not give their maps from before the last ReLU"
            )

    def _stages_from(self, i: int) -> list[nn.Module]:
        if not 1 <= i <= self.num_stages + 1:
            raise ValueError(f"stage must be from 1 to {self.num_stages + 1} (the head alone), got {i}")
        return list(self.stages)[i - 1 :]

    def probe(self, image_size: int) -> Features:
        """Return features that have the shapes, but not the values, of one square image of ``image_size`` pixels.

        The network's parameters and statistics and torch's random state do not change.
        """
        device = next(self.parameters()).device
        with suppress(Exception):
            if device.type == "cpu" and image_size <= SMALL:
                return _pass(copy_without_hooks(self), image_size, device)
            return _pass(_without_norms(copy_without_data(self)), image_size, torch.device("meta"))
        # A layer needs a hook, or reads values, such as one that learns to quantise.
        return _pass(copy_network(self), image_size, device)

    def _shapes(self, image_size: int) -> list[Shape]:
        """Return the shapes of the stem's and the stages' outputs.

        Raises:
            ValueError: One of them is no map [N, C, H, W].
        """
        seen = self.probe(image_size)
        for number, map_ in enumerate((seen.stem, *seen.stages)):
            if map_.dim() != 4:
                place = f"stage {number}" if number else "the stem"
                raise ValueError(f"{place} of {self.name} gives {list(map_.shape)}, which is no map [N, C, H, W]")
        return [cast(Shape, tuple(map_.shape[1:])) for map_ in (seen.stem, *seen.stages)]


def _gives_unpooled(head: nn.Module) -> bool:
    """Return whether a head's pass is ``forward_unpooled`` and then ``classify``."""
    if isinstance(head, Head):  # a subclass may override forward_pooled alone
        return type(head).forward_pooled is Head.forward_pooled
    return hasattr(head, "forward_unpooled")


def _without_norms(net: StagedNet) -> StagedNet:
    """Make BatchNorms return their input: it has the shape of their output, which PyTorch takes a millisecond for."""
    for module in net.modules():
        if type(module) is nn.BatchNorm2d:
            module.forward = _same  # type: ignore[method-assign]
    return net


def _same(input: Tensor) -> Tensor:
    return input


def _pass(net: StagedNet, image_size: int, device: torch.device) -> Features:
    dtype = next(net.parameters()).dtype
    images = torch.zeros(1, net.in_channels, image_size, image_size, device=device, dtype=dtype)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        return net.eval().forward_features(images)
