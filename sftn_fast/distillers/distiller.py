"""Cross-entropy and distillation losses of a student, from one pass of each network."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sftn_fast.data import Batch, labels_of
from sftn_fast.distillers import registry
from sftn_fast.distillers.gather import warn_if_not_averaged
from sftn_fast.distillers.logits_source import LogitsSource, OnlyLogits
from sftn_fast.distillers.loss_checks import require_scalar, require_terms
from sftn_fast.distillers.method import (
    FusedMethod,
    Initialisation,
    Method,
    NetInfo,
    Setup,
    TwoViewMethod,
    sum_of,
)
from sftn_fast.distillers.network_checks import check_teachers
from sftn_fast.distillers.spec import CE, Spec, Term
from sftn_fast.distillers.stored_weights import store_weights
from sftn_fast.distillers.teacher_mode import teacher_mode
from sftn_fast.distillers.warmup import WarmUp
from sftn_fast.models import Features, StagedNet


class Distiller(nn.Module):
    """Cross-entropy and distillation losses of a student.

    Student and teachers are not registered as submodules, so parameters and state are those of the methods' adapters
    alone. The teachers move with the module and stay in evaluation mode. Each step uses their current weights. With
    several teachers, each has adapters of its own, and a method's loss is the mean over the teachers.

    Args:
        spec: Methods with weights and options.
        student: The network that learns.
        teachers: The networks it learns from, one or more.
        num_samples: Number of training images.
        image_size: Side of the images in pixels.
        labels: Classes of the training images [num_samples], if they are known.
        gather: Give methods that relate the images of a batch the images of all processes. Each process must have the
            same number of images.

    Attributes:
        methods: For each teacher, its methods by name.
        weights: Weight of each term, ``ce`` and the methods by name.
        strong_view: Whether a method compares two views of each image, so that images are [N, 2, C, H, W].
        splits: Whether the terms have ``labels`` too, the weighted cross-entropy, which carries its part of the total's
            gradient; for an optimizer that treats the two parts differently.

    Raises:
        ValueError: The networks differ in classes or channels, share a module, or can't run on such images; or a
            method can't use them.
    """

    def __init__(
        self,
        spec: Spec,
        *,
        student: StagedNet,
        teachers: Sequence[StagedNet],
        num_samples: int,
        image_size: int,
        labels: Tensor | None = None,
        gather: bool = False,
    ) -> None:
        super().__init__()
        check_teachers(student, teachers)
        # A tuple, so that nn.Module does not register the networks.
        self._held = (student, *(teacher.eval() for teacher in teachers))
        about_student = NetInfo.of(student, image_size)
        self.methods = nn.ModuleList()
        first = sorted(spec.methods, key=lambda term: not registry.find(term.name).replaces_head)
        for teacher in teachers:
            setup = Setup(about_student, NetInfo.of(teacher, image_size), num_samples, image_size, labels, gather)
            built: dict[str, Method] = {}
            for term in first:
                built[term.name] = _method(term, setup)
                if built[term.name].replaces_head:
                    setup = _with_new_head(term.name, built[term.name], setup, len(teachers))
            self.methods.append(nn.ModuleDict({term.name: built[term.name] for term in spec.methods}))
        self.weights = complete_weights(spec, self._methods_of(0))
        self._needs_preacts = any(method.needs_preacts for method in self._losses_of(0).values())
        self.strong_view = any(isinstance(method, TwoViewMethod) for method in self._losses_of(0).values())
        self._image_size = image_size
        self._logits: LogitsSource | None = None
        self._has_run = False
        self.splits = False

    @property
    def student(self) -> StagedNet:
        """The network that learns."""
        return self._held[0]

    @property
    def teachers(self) -> tuple[StagedNet, ...]:
        """The networks it learns from, frozen."""
        return self._held[1:]

    @property
    def teacher(self) -> StagedNet:
        """The first teacher."""
        return self._held[1]

    def initialisations(self) -> list[tuple[str, Initialisation]]:
        """Return the trainings that must run before the student's, in order, each with a unique name."""
        found = []
        for number, teacher in enumerate(self.teachers):
            for name, method in self._methods_of(number).items():
                first = method.initialisation(self.student, teacher)
                if first is not None:
                    found.append((name if number == 0 else f"{name}-{number + 1}", first))
        return found

    def describe(self) -> list[str]:
        """Return what the methods compare, in one or more lines each."""
        return [
            f"{name}: {line}"
            for number in range(len(self.teachers))
            for name, method in self._methods_of(number).items()
            for line in method.describe()
        ]

    def describe_warm_ups(self, epochs: int) -> list[str]:
        """Return a warning for each method whose weight does not get to its full size within ``epochs``."""
        return [
            f"warning: the weight of {name} warms up over {part.epochs} epochs, and this training has {epochs}"
            for name, method in self._methods_of(0).items()
            for part in vars(method).values()
            if isinstance(part, WarmUp) and part.epochs > epochs
        ]

    def keep_logits(self, logits: LogitsSource) -> None:
        """Take the teacher's logits from ``logits``, and run the teacher only for images that it does not have.

        Call :meth:`begin_epoch` before each epoch, and tell ``logits`` when one has ended. The teacher must not change.
        Its weights are compared at the start of each epoch; once they differ, it runs in every step.

        Raises:
            ValueError: A method reads more of the teacher than its logits, or there are several teachers.
        """
        if len(self.teachers) > 1:
            raise ValueError(f"logits are kept of one teacher, got {len(self.teachers)}")
        for name, method in self._losses_of(0).items():
            if method.needs_features:
                raise ValueError(f"{name} reads more of the teacher than its logits")
        logits.watch(self.teacher)
        self._logits = logits

    def store_teachers(self, autocast: torch.autocast) -> Callable[[], None]:
        """Store the teachers' weights in the dtype to which ``autocast`` casts them, until the returned call.

        No output changes by a bit. Networks that do not allow it stay as they are, and so does a teacher whose logits
        are kept. Until then the teachers must run under ``autocast``.
        """
        if self._logits is not None:  # it recognises the teacher by its weights
            return lambda: None
        restore = [store_weights(teacher, autocast, self._image_size) for teacher in self.teachers]

        def restore_all() -> None:
            for one in restore:
                one()

        return restore_all

    def begin_epoch(self, epoch: int) -> bool:
        """Tell the methods that ``epoch`` begins, counted from 0; return whether any loss changed.

        Without this call, losses do not warm up.
        """
        methods = [method for number in range(len(self.teachers)) for method in self._methods_of(number).values()]
        answers = [method.begin_epoch(epoch) for method in methods]
        if self._logits is not None:
            answers.append(self._logits.begin_epoch(epoch))
        return any(answer is not False for answer in answers)

    def forward(self, images: Tensor, target: Tensor, index: Tensor) -> dict[str, Tensor]:
        """Compute the losses of one batch.

        Args:
            images: [N, C, H, W]; with ``strong_view`` a weak and a strong view of each, [N, 2, C, H, W].
            target: Labels [N] int64; or probabilities [N, num_classes], as those of mixed images, for the cross-entropy
                with them. Methods see the most probable class.
            index: Indices of the images in the training data [N], int64.

        Returns:
            0-dim terms: ``total``, weighted, which carries the gradient; ``ce`` and each method's loss by its name,
            unweighted and detached. A method that only initialises the student has no term.
        """
        if not self._has_run:
            self._has_run = True
            warn_if_not_averaged(self.student)
        images, strong = self._views(images)
        losses, batch = self._losses_of(0), Batch(images, labels_of(target), index)
        if self.splits:
            return self._split_terms(batch, target, strong)
        if len(self.teachers) == len(losses) == 1:
            ((name, method),) = losses.items()
            if isinstance(method, FusedMethod):
                return self._fused_terms(name, method, batch, target)
        return self._terms(batch, target, strong)

    def _fused_terms(self, name: str, method: FusedMethod, batch: Batch, target: Tensor) -> dict[str, Tensor]:
        teacher_logits = self._teacher_logits(batch)
        weights = {"weight": self.weights[name], "ce_weight": self.weights[CE]}
        terms = method.loss_with_ce(self.student(batch.images), teacher_logits, target, **weights)
        require_terms(name, method.loss_with_ce, terms)
        return {"total": terms.total, CE: terms.ce, name: terms.loss}

    def _split_terms(self, batch: Batch, target: Tensor, strong: Tensor | None) -> dict[str, Tensor]:
        if not self._losses_of(0):
            raise ValueError("optim.dot needs a loss beside the cross-entropy while the student trains")
        return self._terms(batch, target, strong)

    def _terms(self, batch: Batch, target: Tensor, strong: Tensor | None) -> dict[str, Tensor]:
        """Return the terms of all methods; ``strong`` are the strong views [N, C, H, W], if a method compares them."""
        images, extra = self._all_images(batch.images)
        student = self.student.forward_features(images, preact=self._needs_preacts)
        own = student.first(len(batch.target))
        views = [own] if strong is None else [own, self.student.forward_features(strong)]
        losses = {CE: sum_of(F.cross_entropy(view.logits.float(), target) for view in views)}
        for number, teacher in enumerate(self.teachers):
            methods = self._losses_of(number)
            if not methods:
                continue
            taught_strong = []
            if self._logits is not None:
                taught: Features = OnlyLogits(self._teacher_logits(batch))
            else:
                with teacher_mode(teacher):
                    taught = teacher.forward_features(images, preact=self._needs_preacts)
                    if strong is not None:
                        taught_strong = [teacher.forward_features(strong)]
            for name, method in methods.items():
                theirs, compare = taught.first(len(batch.target)), _loss_function(method)
                sides: tuple[Any, Any] = (student, taught) if name == extra else (own, theirs)
                if isinstance(method, TwoViewMethod):
                    sides = views, [theirs, *taught_strong]
                loss = require_scalar(name, compare, compare(*sides, batch)).float() / len(self.teachers)
                losses[name] = losses[name] + loss if name in losses else loss
        total = sum(self.weights[name] * loss for name, loss in losses.items())
        labels = {"labels": self.weights[CE] * losses[CE]} if self.splits else {}
        return {"total": cast(Tensor, total)} | {name: loss.detach() for name, loss in losses.items()} | labels

    @torch.no_grad()
    def _teacher_logits(self, batch: Batch) -> Tensor:
        """Return logits [N, num_classes] of the first teacher, computed or from its :class:`LogitsSource`."""

        def run_teacher() -> Tensor:
            with teacher_mode(self.teacher):
                return self.teacher(batch.images)

        return run_teacher() if self._logits is None else self._logits(batch.index, run_teacher)

    def _views(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the weak views [N, C, H, W], and the strong ones if a method compares them."""
        if not self.strong_view:
            return images, None
        if images.ndim != 5 or images.shape[1] != 2:
            names = [name for name, method in self._losses_of(0).items() if isinstance(method, TwoViewMethod)]
            raise ValueError(
                f"images must be [N, 2, C, H, W] for {' and '.join(names)}, a weak and a strong view of each, "
                f"got {list(images.shape)}"
            )
        weak, strong = images.unbind(1)
        return weak, strong

    def _all_images(self, images: Tensor) -> tuple[Tensor, str | None]:
        """Return the batch's images followed by those that a method adds, and the name of that method."""
        asked = {name: method.extra_images(images) for name, method in self._losses_of(0).items()}
        extra = {name: more for name, more in asked.items() if more is not None}
        if len(extra) > 1:
            raise ValueError(f"only one method may add images of its own, got {' and '.join(extra)}")
        for name, more in extra.items():
            return torch.cat([images, more]), name
        return images, None

    def _methods_of(self, teacher: int) -> dict[str, Method]:
        return dict(cast(nn.ModuleDict, self.methods[teacher]).items())  # type: ignore[arg-type]

    def _losses_of(self, teacher: int) -> dict[str, Method]:
        """Return the methods that have a loss while the student trains."""
        return {name: method for name, method in self._methods_of(teacher).items() if not method.only_initialises}

    def train(self, mode: bool = True) -> Distiller:
        """Set the mode of the adapters; the teachers stay in evaluation mode."""
        for teacher in self.teachers:
            teacher.eval()
        return super().train(mode)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Distiller:
        """Apply ``.to``, ``.cuda`` and ``.double`` to the teachers too, which nn.Module does not know."""
        for teacher in self.teachers:
            teacher._apply(fn, recurse)
        return super()._apply(fn, recurse)


def _loss_function(method: Method) -> Callable[..., Tensor]:
    return method.loss_of_views if isinstance(method, TwoViewMethod) else method.loss


def _with_new_head(name: str, method: Method, setup: Setup, teachers: int) -> Setup:
    """Give the student the head of ``method``; return the setup for the methods beside it."""
    if teachers > 1:
        raise ValueError(f"{name} takes one teacher, whose classifier the student gets, got {teachers}")
    shape = setup.student.unpooled or setup.student.stages[-1]
    net = setup.student.net
    net.head = head = method.build_student_head().to(next(net.parameters())).train(net.training)
    features, size = head.fc.in_features, getattr(head, "size", None) or shape[1:]
    student = dataclasses.replace(setup.student, pooled=features, unpooled=(features, *size))
    return dataclasses.replace(setup, student=student)


def _method(term: Term, setup: Setup) -> Method:
    try:
        return registry.find(term.name)(setup, **term.options)
    except ValueError as error:
        named = str(error).startswith(term.name)  # some messages begin with the method's name already
        raise ValueError(str(error) if named else f"{term.name}: {error}") from error


def complete_weights(spec: Spec, methods: Mapping[str, Method | type[Method]]) -> dict[str, float]:
    """Return the weights in ``spec``, completed by the methods' defaults."""
    weights = {CE: 1.0} | {name: method.default_weight for name, method in methods.items()}
    (name, method), *others = methods.items()
    if not others and method.weights_alone is not None:
        weights[name], weights[CE] = method.weights_alone
    given = {CE: spec.ce_weight} | {term.name: term.weight for term in spec.methods}
    return weights | {name: weight for name, weight in given.items() if weight is not None}
