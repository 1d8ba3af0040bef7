"""Base classes of distillation methods, and the setup that a method is built for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, cast

from torch import Tensor, nn

from sftn_fast.data import Batch
from sftn_fast.distillers import registry
from sftn_fast.distillers.gather import whole_batch
from sftn_fast.distillers.pairing import StagePair, pair_stages
from sftn_fast.models import Features, StagedNet
from sftn_fast.models.staged import Head, Shape


@dataclass(frozen=True)
class NetInfo:
    """A network and the shapes of its features, from which a method builds its adapters."""

    net: StagedNet
    """The network, for reading only, such as a BatchNorm's parameters. A method must not register any of it."""
    stages: list[Shape]
    """(C, H, W) of each stage's output."""
    pooled: int
    """Length of the pooled vector."""
    unpooled: Shape | None = None
    """(D, H, W) of the map that is pooled; None if the head does not provide it."""

    @classmethod
    def of(cls, net: StagedNet, image_size: int) -> NetInfo:
        """Find the shapes for square images of ``image_size`` pixels, without changing the network's state.

        Raises:
            ValueError: The network can't run on such images, or does not return features.
        """
        try:
            seen = net.probe(image_size)
        except Exception as error:  # layers may raise anything
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            where = f"on images of {image_size} x {image_size} pixels"
            raise ValueError(f"{net.name or 'a network'} can't run {where}: {reason}") from error
        stages = [cast(Shape, tuple(map_.shape[1:])) for map_ in seen.stages]
        unpooled = None if seen.unpooled is None else cast(Shape, tuple(seen.unpooled.shape[1:]))
        return cls(net, stages, seen.pooled.shape[1], unpooled)


@dataclass(frozen=True)
class Setup:
    """Networks and data that a method is built for."""

    student: NetInfo
    teacher: NetInfo
    num_samples: int
    """Number of training images; a batch's ``index`` is below it."""
    image_size: int
    """Side of the images in pixels."""
    labels: Tensor | None = None
    """Classes of the training images [num_samples] int64, if they are known."""
    gather: bool = False
    """Whether methods that relate images see those of all processes; see :class:`RelationalMethod`."""

    @property
    def pairs(self) -> tuple[StagePair, ...]:
        """Pairs of student and teacher stages, each stage at most once; see :func:`pair_stages`.

        Raises:
            ValueError: A stage returns no map [N, C, H, W], but for example tokens of a transformer.
        """
        self.require_maps()
        return pair_stages(self.student.stages, self.teacher.stages)

    def require_maps(self) -> None:
        """Raise ValueError if a stage of either network returns anything but a map [N, C, H, W]."""
        for role, network in (("student", self.student), ("teacher", self.teacher)):
            for number, shape in enumerate(network.stages, start=1):
                if len(shape) != 3:
                    given = f"stage {number} of the {role} gives [N, {', '.join(map(str, shape))}]"
                    raise ValueError(f"its maps must be [N, C, H, W], and {given}")


class Method(nn.Module):
    """A loss between a student and a teacher. Its parameters, if any, are adapters that learn beside the student.

    Register a subclass with :func:`~sftn_fast.distillers.registry.register`. It is constructed as
    ``cls(setup, **options)``. The keyword-only arguments of its constructor are the options that users may give; see
    :mod:`sftn_fast.distillers.options`.
    """

    default_weight: ClassVar[float] = 1.0
    """Weight if the user gives none."""
    weights_alone: ClassVar[tuple[float, float] | None] = None
    """Default weights of the method and of the cross-entropy if it is the only method and they differ then."""
    needs_preacts: ClassVar[bool] = False
    """Whether ``loss`` reads ``Features.preacts``."""
    needs_features: ClassVar[bool] = True
    """Whether ``loss`` reads more of the teacher than its logits of the batch's images. If not, cached logits can
    replace the teacher's pass; see :meth:`~sftn_fast.distillers.distiller.Distiller.keep_logits`."""
    defaults_in_words: ClassVar[dict[str, str]] = {}
    """Effective value of each option whose default stands for another one; for the table of methods."""
    family: ClassVar[str] = registry.FAMILIES[0]
    """What the method compares, one of :data:`~sftn_fast.distillers.registry.FAMILIES`."""
    published: ClassVar[Mapping[str, str | tuple[str, ...]]] = {}
    """Specifications that authors publish for single pairs of networks, one or several by ``"TEACHER STUDENT"``."""
    replaces_head: ClassVar[bool] = False
    """Whether the student gets the head that :meth:`build_student_head` returns, before any other method is built."""
    only_initialises: bool = False
    """Whether the method has an :meth:`initialisation` only: it has no ``loss`` and needs no teacher later."""

    def __init__(self, setup: Setup) -> None:
        super().__init__()

    def loss(self, student: Features, teacher: Features, batch: Batch) -> Tensor:
        """Return the loss, 0-dim and unweighted, with gradients to the student's features only.

        The features are those of ``batch.images``, followed by those of :meth:`extra_images` if there are any.
        ``batch.target`` has one label for each image [N] int64: of a mixed image, that with the largest share.
        """
        raise NotImplementedError(f"the class {type(self).__name__} has no method loss(student, teacher, batch)")

    def extra_images(self, images: Tensor) -> Tensor | None:
        """Return further images [M, C, H, W] that both networks see after the batch's own, or None."""
        return None

    def build_student_head(self) -> Head:
        """Return a head that replaces the student's, for methods that set ``replaces_head``."""
        raise NotImplementedError(f"the class {type(self).__name__} has no method build_student_head()")

    def initialisation(self, student: StagedNet, teacher: StagedNet) -> Initialisation | None:
        """Return the training that must run before the student's, or None."""
        return None

    def begin_epoch(self, epoch: int) -> bool | None:
        """Update weights that warm up; called before each epoch, counted from 0, by loops that support it.

        Returns:
            False if the loss is computed as in the previous epoch. Any other value, None included, means that it may
            have changed, and a step that was recorded as a CUDA graph is recorded again.
        """
        return False

    def describe(self) -> list[str]:
        """Return what the method compares, as lines to print at the start of a run."""
        return []


class PairedMethod(Method):
    """A method that compares the maps of all paired stages."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.pairs = setup.pairs

    def maps(self, student: Features, teacher: Features) -> list[tuple[Tensor, Tensor]]:
        """Return the paired stages' outputs [N, C, H, W], the student's first."""
        return self._paired(student.stages, teacher.stages)

    def preact_maps(self, student: Features, teacher: Features) -> list[tuple[Tensor, Tensor]]:
        """Return the same maps before their ReLU; for methods that set ``needs_preacts``."""
        assert student.preacts is not None and teacher.preacts is not None
        return self._paired(student.preacts, teacher.preacts)

    def _paired(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        return [(student[pair.student_stage - 1], teacher[pair.teacher_stage - 1]) for pair in self.pairs]

    def describe(self) -> list[str]:
        """See :meth:`Method.describe`."""
        return [", ".join(str(pair) for pair in self.pairs)]


class TwoViewMethod(Method):
    """A method that compares the networks on a weak and a strong view of each image.

    The weak view is the image as other methods see it. Both networks see the views one after the other, and the student
    learns the labels of both: the cross-entropy is the sum over the views.
    """

    def loss_of_views(self, student: Sequence[Features], teacher: Sequence[Features], batch: Batch) -> Tensor:
        """Return the loss as :meth:`Method.loss` does, from the features of the weak view and of the strong one.

        ``batch.images`` are the weak views.
        """
        raise NotImplementedError(
            f"the class {type(self).__name__} has no method loss_of_views(student, teacher, batch)"
        )


class RelationalMethod(Method):
    """A method that compares how the images of a batch relate to each other."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self._gather = setup.gather

    def together(self, *rows: Tensor) -> tuple[Tensor, ...]:
        """Return each of ``rows`` [N, ...], gathered over all processes [ranks * N, ...] with ``Setup.gather``."""
        return tuple(whole_batch(x) for x in rows) if self._gather else rows


def sum_of(losses: Iterable[Tensor]) -> Tensor:
    """Return the sum of one or more losses."""
    first, *others = losses
    return sum(others, start=first)


class InitTask(nn.Module):
    """A training task of an initialisation. Its ``model`` is None, since there is nothing to evaluate.

    It registers the modules that it trains and all others that it changes, so that its state covers them. Its adapters
    are the method's own, and are ready when it ends.
    """

    model: None = None

    def forward(self, images: Tensor, target: Tensor, index: Tensor) -> dict[str, Tensor]:
        """Return 0-dim float32 terms by name; ``total`` carries the gradient. The arguments are those of a task."""
        raise NotImplementedError

    def finish(self) -> None:
        """Undo temporary changes to the networks, such as frozen parameters, and freeze adapters that are done."""


@dataclass(frozen=True)
class Initialisation:
    """A training that runs before the student's own."""

    task: InitTask
    epochs: int
    lr: float | None = None
    """Learning rate; None for the student's."""
    milestones: Sequence[int] = ()
    """Epochs after which the learning rate is divided by ten; it is constant if there are none."""


class FusedTerms(NamedTuple):
    """A method's loss and the cross-entropy, computed together. All terms are 0-dim."""

    total: Tensor
    """Weighted sum, which carries the gradient."""
    ce: Tensor
    """Cross-entropy with the labels, unweighted and detached."""
    loss: Tensor
    """The method's loss, unweighted and detached."""


class FusedMethod(Method):
    """A method that reads logits only and, if it is the only one, is computed together with the cross-entropy."""

    needs_features = False

    def loss_with_ce(
        self, student_logits: Tensor, teacher_logits: Tensor, target: Tensor, *, weight: float, ce_weight: float
    ) -> FusedTerms:
        """Compute both losses in one pass.

        Args:
            student_logits, teacher_logits: [N, num_classes].
            target: Labels [N] int64, or probabilities [N, num_classes], as those of mixed images.
            weight, ce_weight: Weights of this method's loss and of the cross-entropy in the total.
        """
        raise NotImplementedError
