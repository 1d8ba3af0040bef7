"""A student's losses: cross-entropy with the labels and any number of methods, from one pass of each network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sftn_fast.data import Batch
from sftn_fast.distillers import registry
from sftn_fast.distillers.gather import warn_if_nobody_averages
from sftn_fast.distillers.logits_source import LogitsSource, OnlyLogits
from sftn_fast.distillers.method import FusedMethod, Initialisation, Method, NetInfo, Setup
from sftn_fast.distillers.networks import check_teachers
from sftn_fast.distillers.spec import CE, Spec, Term
from sftn_fast.distillers.teaching import teaching
from sftn_fast.models import Features, StagedNet


class Distiller(nn.Module):
    """Cross-entropy and distillation losses of a student.

    Student and teachers are held, not registered: parameters and state are those of the methods' adapters alone. The
    teachers move along with the module, and are in evaluation mode whatever mode the module is in. They answer with the
    weights that they have, whatever wrote them. With several teachers each has adapters of its own, and a method's loss
    is the mean over them.

    Args:
        spec: Methods with weights and options.
        student: The network that learns.
        teachers: The networks it learns from, one or more.
        num_samples: Training images.
        image_size: Side of the images in pixels.
        labels: Classes of the training images [num_samples], where they are known beforehand.
        gather: Methods that relate the images of a batch see those of all processes; each has to have as many.

    Attributes:
        methods: For each teacher, its methods by name.
        weights: Weight of each term, ``ce`` and the methods by name.

    Raises:
        ValueError: The networks differ in their classes or channels, share a module, can't take such images, or a
            method can't serve them.
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
        # The tuple hides the networks from nn.Module, which would register them.
        self._held = (student, *(teacher.eval() for teacher in teachers))
        about_student = NetInfo.of(student, image_size)
        self.methods = nn.ModuleList()
        for teacher in teachers:
            setup = Setup(about_student, NetInfo.of(teacher, image_size), num_samples, image_size, labels, gather)
            self.methods.append(nn.ModuleDict({term.name: _method(term, setup) for term in spec.methods}))
        self.weights = _weights(spec, self._methods_of(0))
        self._needs_preacts = any(method.needs_preacts for method in self._losses_of(0).values())
        self._logits: LogitsSource | None = None
        self._has_run = False

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
        """The first of the teachers."""
        return self._held[1]

    def initialisations(self) -> list[tuple[str, Initialisation]]:
        """What has to be trained before the student, in this order; each with a name that tells it from the others."""
        found = []
        for number, teacher in enumerate(self.teachers):
            for name, method in self._methods_of(number).items():
                first = method.initialisation(self.student, teacher)
                if first is not None:
                    found.append((name if number == 0 else f"{name}-{number + 1}", first))
        return found

    def describe(self) -> list[str]:
        """What the methods compare, a line each."""
        return [
            f"{name}: {line}"
            for number in range(len(self.teachers))
            for name, method in self._methods_of(number).items()
            for line in method.describe()
        ]

    def keep_logits(self, logits: LogitsSource) -> None:
        """From now on run the teacher only where ``logits`` does not know what it would say.

        Tell this distiller which epoch begins, and ``logits`` which has ended. The teacher must not change meanwhile.
        Its weights are compared when an epoch begins: from then on it runs in every step.

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

    def begin_epoch(self, epoch: int) -> bool:
        """Tell the methods which epoch begins, counted from 0; whether any loss is computed otherwise now.

        A loop that never does has no warm-up.
        """
        methods = [method for number in range(len(self.teachers)) for method in self._methods_of(number).values()]
        answers = [method.begin_epoch(epoch) for method in methods]
        if self._logits is not None:
            answers.append(self._logits.begin_epoch(epoch))
        return any(answer is not False for answer in answers)

    def forward(self, images: Tensor, target: Tensor, index: Tensor) -> dict[str, Tensor]:
        """Losses of one batch.

        Args:
            images: [N, C, H, W].
            target: Labels [N], int64.
            index: The images' numbers in the training data [N], int64.

        Returns:
            0-dim terms: ``total``, weighted, which carries the gradient; ``ce`` and, by its name, each method's that
            has a loss once it is initialised, not weighted and detached.
        """
        if not self._has_run:
            self._has_run = True
            warn_if_nobody_averages(self.student)
        losses, batch = self._losses_of(0), Batch(images, target, index)
        if len(self.teachers) == len(losses) == 1:
            ((name, method),) = losses.items()
            if isinstance(method, FusedMethod):
                return self._fused_terms(name, method, batch)
        return self._terms(batch)

    def _fused_terms(self, name: str, method: FusedMethod, batch: Batch) -> dict[str, Tensor]:
        teacher_logits = self._teacher_logits(batch)
        weights = {"weight": self.weights[name], "ce_weight": self.weights[CE]}
        total, ce, loss = method.loss_with_ce(self.student(batch.images), teacher_logits, batch.target, **weights)
        return {"total": total, CE: ce, name: loss}

    def _terms(self, batch: Batch) -> dict[str, Tensor]:
        images, extra = self._all_images(batch.images)
        student = self.student.forward_features(images, preact=self._needs_preacts)
        own = student.first(len(batch.target))
        losses = {CE: F.cross_entropy(own.logits.float(), batch.target)}
        for number, teacher in enumerate(self.teachers):
            methods = self._losses_of(number)
            if not methods:
                continue
            if self._logits is not None:
                taught: Features = OnlyLogits(self._teacher_logits(batch))
            else:
                with teaching(teacher):
                    taught = teacher.forward_features(images, preact=self._needs_preacts)
            for name, method in methods.items():
                pair = (student, taught) if name == extra else (own, taught.first(len(batch.target)))
                loss = method.loss(*pair, batch).float() / len(self.teachers)
                losses[name] = losses[name] + loss if name in losses else loss
        total = sum(self.weights[name] * loss for name, loss in losses.items())
        return {"total": cast(Tensor, total)} | {name: loss.detach() for name, loss in losses.items()}

    @torch.no_grad()
    def _teacher_logits(self, batch: Batch) -> Tensor:
        """The logits [N, num_classes] of the first teacher, from its pass or from what is known of it."""

        def of_its_pass() -> Tensor:
            with teaching(self.teacher):
                return self.teacher(batch.images)

        return of_its_pass() if self._logits is None else self._logits(batch.index, of_its_pass)

    def _all_images(self, images: Tensor) -> tuple[Tensor, str | None]:
        """The batch's images with those that a method asks for behind them, and that method's name."""
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
        """The methods that have a loss while the student learns."""
        return {name: method for name, method in self._methods_of(teacher).items() if not method.only_beforehand}

    def train(self, mode: bool = True) -> Distiller:
        """Set the mode of the adapters; the teachers are in evaluation mode after it in any case."""
        for teacher in self.teachers:
            teacher.eval()
        return super().train(mode)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Distiller:
        """Carries ``.to``, ``.cuda`` and ``.double`` over to the teachers, which nn.Module doesn't know of."""
        for teacher in self.teachers:
            teacher._apply(fn, recurse)
        return super()._apply(fn, recurse)


def _method(term: Term, setup: Setup) -> Method:
    try:
        return registry.find(term.name)(setup, **term.options)
    except ValueError as error:
        # Some say already who they are.
        named = str(error).startswith(term.name)
        raise ValueError(str(error) if named else f"{term.name}: {error}") from error


def _weights(spec: Spec, methods: dict[str, Method]) -> dict[str, float]:
    """The weights given, and the methods' defaults for the others."""
    weights = {CE: 1.0} | {name: method.default_weight for name, method in methods.items()}
    (name, method), *others = methods.items()
    if not others and method.weights_alone is not None:
        weights[name], weights[CE] = method.weights_alone
    given = {CE: spec.ce_weight} | {term.name: term.weight for term in spec.methods}
    return weights | {name: weight for name, weight in given.items() if weight is not None}
