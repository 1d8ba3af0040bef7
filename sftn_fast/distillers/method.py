"""What a distillation method is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, cast

from torch import Tensor, nn

from sftn_fast.data import Batch
from sftn_fast.distillers.gather import whole_batch
from sftn_fast.distillers.pairing import StagePair, pair_stages
from sftn_fast.models import Features, StagedNet
from sftn_fast.models.staged import Shape


@dataclass(frozen=True)
class NetInfo:
    """A network and the shapes of its features, from which a method makes its adapters."""

    net: StagedNet
    """To look at, as for a BatchNorm's parameters; a method registers none of it."""
    stages: list[Shape]
    """(C, H, W) of each stage's output."""
    pooled: int
    """Length of the pooled vector."""

    @classmethod
    def of(cls, net: StagedNet, image_size: int) -> NetInfo:
        """Find the shapes for square images of ``image_size`` pixels; leaves the network's state alone.

        Raises:
            ValueError: The network can't take such images, or does not show what it does with them.
        """
        try:
            seen = net.probe(image_size)
        except Exception as error:  # whatever the network's layers raise
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            where = f"on images of {image_size} x {image_size} pixels"
            raise ValueError(f"{net.name or 'a network'} can't run {where}: {reason}") from error
        return cls(net, [cast(Shape, tuple(map_.shape[1:])) for map_ in seen.stages], seen.pooled.shape[1])


@dataclass(frozen=True)
class Setup:
    """What a method is built for."""

    student: NetInfo
    teacher: NetInfo
    num_samples: int
    """Training images; a batch's ``index`` is below it."""
    image_size: int
    """Side of the images in pixels."""
    labels: Tensor | None = None
    """Classes of the training images [num_samples] int64, where they are known beforehand."""
    gather: bool = False
    """Whether methods that relate images see those of all processes; see :class:`RelationalMethod`."""

    @property
    def pairs(self) -> tuple[StagePair, ...]:
        """The stages that stand beside each other, each at most once; see :func:`pair_stages`.

        Raises:
            ValueError: A stage gives no map, as the tokens of a transformer.
        """
        self.require_maps()
        return pair_stages(self.student.stages, self.teacher.stages)

    def require_maps(self) -> None:
        """Raise ValueError where a stage of either network gives something else than a map [N, C, H, W]."""
        for role, network in (("student", self.student), ("teacher", self.teacher)):
            for number, shape in enumerate(network.stages, start=1):
                if len(shape) != 3:
                    given = f"stage {number} of the {role} gives [N, {', '.join(map(str, shape))}]"
                    raise ValueError(f"its maps must be [N, C, H, W], and {given}")


class Method(nn.Module):
    """A loss between a student and a teacher. Its parameters, if any, are adapters that learn beside the student.

    A subclass is registered by :func:`~sftn_fast.distillers.registry.register` and constructed as
    ``cls(setup, **options)``; the keyword-only arguments of its constructor are the options that users may give, see
    :mod:`sftn_fast.distillers.options`.
    """

    default_weight: ClassVar[float] = 1.0
    """Weight where the user gives none."""
    weights_alone: ClassVar[tuple[float, float] | None] = None
    """Default weights of the method and of the cross-entropy where it is the only method, if they differ then."""
    needs_preacts: ClassVar[bool] = False
    """Whether ``loss`` reads ``Features.preacts``."""
    needs_features: ClassVar[bool] = True
    """Whether ``loss`` reads more of the teacher than its logits on the batch's images. Where it says that it does not,
    the teacher's pass can be left out, see :meth:`~sftn_fast.distillers.distiller.Distiller.keep_logits`."""
    defaults_in_words: ClassVar[dict[str, str]] = {}
    """Of options whose default stands for another value, what that is; for the table of methods."""
    only_beforehand: bool = False
    """Whether :meth:`initialisation` is all that the method does: it has no ``loss``, and needs no teacher later."""

    def __init__(self, setup: Setup) -> None:
        super().__init__()

    def loss(self, student: Features, teacher: Features, batch: Batch) -> Tensor:
        """The loss, 0-dim and unweighted, with gradients to the student's features; the teacher's carry none.

        The features are of ``batch.images``, followed by those of :meth:`extra_images` where there are some.
        """
        raise NotImplementedError

    def extra_images(self, images: Tensor) -> Tensor | None:
        """Further images [M, C, H, W] that both networks are to see with the batch's own, or None."""
        return None

    def initialisation(self, student: StagedNet, teacher: StagedNet) -> Initialisation | None:
        """What has to be trained before the student is, or None."""
        return None

    def begin_epoch(self, epoch: int) -> bool | None:
        """Told before each epoch, counted from 0, by loops that count; for weights that warm up.

        Returns:
            False: the loss is computed as in the epoch before. Whatever else is taken to have changed something, so
            that a step which is replayed from a CUDA graph is captured anew.
        """
        return False

    def describe(self) -> list[str]:
        """What the method compares, a line each, for the start of a run."""
        return []


class PairedMethod(Method):
    """A method that compares the maps of all stages that stand beside each other."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.pairs = setup.pairs

    def maps(self, student: Features, teacher: Features) -> list[tuple[Tensor, Tensor]]:
        """The paired stages' outputs [N, C, H, W], the student's first."""
        return self._paired(student.stages, teacher.stages)

    def preact_maps(self, student: Features, teacher: Features) -> list[tuple[Tensor, Tensor]]:
        """The same before their ReLU; for methods that ask for them by ``needs_preacts``."""
        assert student.preacts is not None and teacher.preacts is not None
        return self._paired(student.preacts, teacher.preacts)

    def _paired(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        return [(student[pair.student_stage - 1], teacher[pair.teacher_stage - 1]) for pair in self.pairs]

    def describe(self) -> list[str]:
        """See :meth:`Method.describe`."""
        return [", ".join(str(pair) for pair in self.pairs)]


class RelationalMethod(Method):
    """A method that compares how the images of a batch relate to each other."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self._gather = setup.gather

    def together(self, *rows: Tensor) -> tuple[Tensor, ...]:
        """Each of ``rows`` [N, ...], or what it is over all processes [ranks * N, ...] if so chosen."""
        return tuple(whole_batch(x) for x in rows) if self._gather else rows


def sum_of(losses: Iterable[Tensor]) -> Tensor:
    """The sum of at least one loss."""
    first, *others = losses
    return sum(others, start=first)


class InitTask(nn.Module):
    """What an initialisation trains: a task whose ``model`` is None, since there is nothing to evaluate.

    It registers what it trains and whatever else of the networks it changes, so that its state holds all of that. The
    adapters in it are the method's own, which are ready when it is done.
    """

    model: None = None

    def forward(self, images: Tensor, target: Tensor, index: Tensor) -> dict[str, Tensor]:
        """0-dim float32 terms by name; ``total`` carries the gradient. Arguments as a task's."""
        raise NotImplementedError

    def finish(self) -> None:
        """Put back what the task had to change for its time, as frozen parameters."""


@dataclass(frozen=True)
class Initialisation:
    """A stage of training that comes before the student's own."""

    task: InitTask
    epochs: int
    lr: float | None = None
    """Learning rate; None for the student's."""
    milestones: Sequence[int] = ()
    """Epochs after which the learning rate is divided by ten; constant without any."""


class FusedMethod(Method):
    """A method that reads nothing but logits and, as the only one, is computed together with the cross-entropy."""

    needs_features = False

    def loss_with_ce(
        self, student_logits: Tensor, teacher_logits: Tensor, target: Tensor, *, weight: float, ce_weight: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Both losses at once.

        Args:
            student_logits, teacher_logits: [N, num_classes].
            target: Labels [N], int64.
            weight, ce_weight: Weights in the total of this method's loss and of the cross-entropy.

        Returns:
            Total, which carries the gradient; cross-entropy and this method's loss, not weighted and detached. All
            0-dim.
        """
        raise NotImplementedError
