"""A student's losses: cross-entropy with the labels and any number of methods, from one pass of each network."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sftn_fast.data import Batch
from sftn_fast.distillers import registry
from sftn_fast.distillers.method import FusedMethod, Method, NetInfo, Setup
from sftn_fast.distillers.spec import CE, Spec
from sftn_fast.models import StagedNet


class Distiller(nn.Module):
    """Cross-entropy and distillation losses of a student.

    Student and teacher are held, not registered: parameters and state are those of the methods' adapters alone. The
    teacher moves along with the module, and is in evaluation mode whatever mode the module is in.

    Args:
        spec: Methods with weights and options.
        student: The network that learns.
        teacher: The network it learns from.
        num_samples: Training images.
        image_size: Side of the images in pixels.

    Attributes:
        weights: Weight of each term, ``ce`` and the methods by name.

    Raises:
        ValueError: The networks differ in their classes, or a method can't serve them.
    """

    def __init__(
        self, spec: Spec, *, student: StagedNet, teacher: StagedNet, num_samples: int, image_size: int
    ) -> None:
        super().__init__()
        if student.num_classes != teacher.num_classes:
            raise ValueError(f"student has {student.num_classes} classes, teacher has {teacher.num_classes}")
        # The tuple hides the networks from nn.Module, which would register them.
        self._held = (student, teacher.eval())
        setup = Setup(NetInfo.of(student, image_size), NetInfo.of(teacher, image_size), num_samples, image_size)
        methods = {term.name: registry.find(term.name)(setup, **term.options) for term in spec.methods}
        self.methods = nn.ModuleDict(methods)
        self.weights = _weights(spec, methods)
        self._needs_preacts = any(method.needs_preacts for method in methods.values())

    @property
    def student(self) -> StagedNet:
        """The network that learns."""
        return self._held[0]

    @property
    def teacher(self) -> StagedNet:
        """The network it learns from, frozen."""
        return self._held[1]

    def forward(self, images: Tensor, target: Tensor, index: Tensor) -> dict[str, Tensor]:
        """Losses of one batch.

        Args:
            images: [N, C, H, W].
            target: Labels [N], int64.
            index: The images' numbers in the training data [N], int64.

        Returns:
            0-dim terms: ``total``, weighted, which carries the gradient; ``ce`` and each method's by its name, not
            weighted and detached.
        """
        (name, method), *others = self.methods.items()
        if not others and isinstance(method, FusedMethod):
            return self._fused_terms(name, method, images, target)
        return self._terms(Batch(images, target, index))

    def _fused_terms(self, name: str, method: FusedMethod, images: Tensor, target: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            teacher_logits = self.teacher(images)
        total, ce, loss = method.loss_with_ce(
            self.student(images), teacher_logits, target, weight=self.weights[name], ce_weight=self.weights[CE]
        )
        return {"total": total, CE: ce, name: loss}

    def _terms(self, batch: Batch) -> dict[str, Tensor]:
        with torch.no_grad():
            teacher = self.teacher.forward_features(batch.images, preact=self._needs_preacts)
        student = self.student.forward_features(batch.images, preact=self._needs_preacts)
        losses = {CE: F.cross_entropy(student.logits.float(), batch.target)}
        for name, method in self.methods.items():
            losses[name] = cast(Method, method).loss(student, teacher, batch).float()
        total = sum(self.weights[name] * loss for name, loss in losses.items())
        return {"total": cast(Tensor, total)} | {name: loss.detach() for name, loss in losses.items()}

    def train(self, mode: bool = True) -> Distiller:
        """Set the mode of the adapters; the teacher is in evaluation mode after it in any case."""
        self.teacher.eval()
        return super().train(mode)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Distiller:
        """Carries ``.to``, ``.cuda`` and ``.double`` over to the teacher, which nn.Module doesn't know of."""
        self.teacher._apply(fn, recurse)
        return super()._apply(fn, recurse)


def _weights(spec: Spec, methods: dict[str, Method]) -> dict[str, float]:
    """The weights given, and the methods' defaults for the others."""
    weights = {CE: 1.0} | {name: method.default_weight for name, method in methods.items()}
    (name, method), *others = methods.items()
    if not others and method.weights_alone is not None:
        weights[name], weights[CE] = method.weights_alone
    given = {CE: spec.ce_weight} | {term.name: term.weight for term in spec.methods}
    return weights | {name: weight for name, weight in given.items() if weight is not None}
