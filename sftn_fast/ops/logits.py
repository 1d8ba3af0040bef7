"""Distillation losses on logits: KD, KD with cross-entropy, and the student-friendly teacher's loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from sftn_fast.ops import _dense, _logits, reference
from sftn_fast.ops import validation as check
from sftn_fast.ops._autograd import Refused, tries_at_once
from sftn_fast.ops._backend import kernels, runs_cpu_kernels
from sftn_fast.ops._checking import checked
from sftn_fast.ops._dtype import widened, widened_beside
from sftn_fast.ops._logits import Options, fused, one_student, packed, remembered
from sftn_fast.ops._logits_arguments import check_logits, check_target, check_temperature_tensor
from sftn_fast.ops._logits_divergence import Label, fused_divergence, takes_cross_entropy
from sftn_fast.ops._logits_divergence import Options as DivergenceOptions
from sftn_fast.ops.reference.logits import _scaled, cross_entropy, standardized, tensor_as
from sftn_fast.ops.terms import KDTerms, SFTNTerms

REDUCTIONS = ("batchmean", "sum", "none")
DIRECTIONS = ("teacher_to_branch", "branch_to_teacher")
BRANCH_REDUCTIONS = ("mean", "sum")


def kd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: float | Tensor = 4.0,
    *,
    reduction: str = "batchmean",
    standardize: bool = False,
) -> Tensor:
    """Compute the distillation loss of Hinton et al. (2015), ``T^2 KL(softmax(t / T) || softmax(s / T))``.

    It equals ``T**2 * F.kl_div(F.log_softmax(s / T, 1), F.softmax(t / T, 1), reduction=reduction)``, summed over
    classes if ``reduction`` is ``"none"``. Logits may be ``-inf``: a class that the teacher rules out contributes
    nothing. An empty batch gives 0.

    Logits may be dense, ``[N, C, d1, ...]`` as those of a segmentation: each pixel is a row. ``"batchmean"`` then sums
    over the pixels, as ``F.kl_div`` does. Maps in dense channels-last format are not copied, others are.

    ``T`` may be learned: the loss then has the exact derivative with respect to it. The logits are divided by such a
    ``T`` in plain PyTorch.

    With ``standardize``, both networks' logits are ``(z - mean) / (std + 1e-7)`` instead, with mean and unbiased
    deviation of each row (Sun et al., CVPR 2024). Then the teacher is a constant, logits must be finite, and the
    gradients of rows of equal logits are about 1e7 times as large as those of other rows. The authors' temperature is
    2, their weight 9.

    Args:
        student_logits: ``[N, C]`` or ``[N, C, d1, ...]``.
        teacher_logits: of the same shape. Receives a gradient too if it requires one, but not with ``standardize``.
        temperature: ``T``, from 1e-12 to 1e12: a number, or a 0-dim floating-point tensor on the device of the logits.
            Its value is checked on the CPU only.
        reduction: ``"batchmean"`` (sum / N, with N images), ``"sum"``, or ``"none"`` for ``[N]`` or ``[N, d1, ...]``.
        standardize: whether logits are standardised first.

    Returns:
        0-dim, or the shape of ``"none"``; float32, or float64 for float64 logits.

    Raises:
        TypeError: for an argument of the wrong type or dtype.
        ValueError: for a wrong shape, device or value, and with ``standardize`` for a teacher that requires a gradient.
    """
    if standardize is False and tries_at_once(student_logits, teacher_logits) and runs_cpu_kernels():
        shape = student_logits.shape
        if _logits.fits_one_student(shape) and reduction != "none" and not isinstance(temperature, Tensor):
            try:
                scalars = _kd_scalars(temperature, reduction, shape[0])
                return one_student((None, scalars, 0), teacher_logits, student_logits)
            except Refused:
                pass
    if checked():
        _check_pair(student_logits, teacher_logits, temperature)
        if reduction not in REDUCTIONS:
            check.check_choice("reduction", reduction, REDUCTIONS)
        check.check_flag("standardize", standardize)
    if standardize:
        check.check_constant("teacher_logits", teacher_logits)
    if student_logits.dim() != 2:
        return _dense.kd_loss(
            kd_loss, student_logits, teacher_logits, temperature, reduction=reduction, standardize=standardize
        )
    if isinstance(temperature, Tensor):
        return _kd_loss_at(temperature, student_logits, teacher_logits, reduction, standardize=standardize)
    ops = kernels(student_logits.device.type)
    if ops is None:
        return reference.kd_loss(
            student_logits, teacher_logits, temperature, reduction=reduction, standardize=standardize
        )
    options = _kd_options(temperature, reduction, student_logits.shape[0])
    if standardize:
        of_rows = _standardized(temperature, options.kl_scale)._replace(rows=options.rows)
        return fused_divergence(ops, student_logits, teacher_logits, None, of_rows)[0]
    return fused(ops, teacher_logits, (student_logits,), None, options)[0]


def kd_ce_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    target: Tensor,
    temperature: float | Tensor = 4.0,
    *,
    kd_weight: float = 0.9,
    ce_weight: float = 0.1,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    standardize: bool = False,
) -> KDTerms:
    """Compute distillation and cross-entropy in one pass: ``kd_weight * kd + ce_weight * ce``.

    ``kd`` is :func:`kd_loss` over all rows. ``ce`` is ``F.cross_entropy(student_logits, target)``, the mean over rows
    with a target other than ``ignore_index``; without such rows it is 0 and has no gradient. The defaults are
    RepDistiller's. With ``standardize``, ``ce`` is still of the logits as they are.

    Of probabilities ``y``, as those of mixed images, ``ce`` is the mean over all rows of ``-sum_c y_c log p_c``. Where
    ``y_c`` is 0 it contributes nothing, whatever ``p_c`` is. A row need not sum to 1.

    Of dense logits ``[N, C, d1, ...]``, ``ce`` is the mean over the pixels with a class, and ``kd`` as in
    :func:`kd_loss` the sum over all pixels, divided by N. So divide ``kd_weight`` by the number of pixels of an image
    for the mean of both.

    Args:
        student_logits: ``[N, C]`` or ``[N, C, d1, ...]``.
        teacher_logits: of the same shape. Receives a gradient too if it requires one, but not with ``standardize``.
        target: int64 classes, ``[N]`` or ``[N, d1, ...]``; or probabilities of the logits' shape, of any floating dtype
            and without a gradient.
        temperature: ``T`` of the distillation, as in :func:`kd_loss`: a number, or a tensor that may be learned.
        kd_weight: weight of the distillation.
        ce_weight: weight of the cross-entropy.
        ignore_index: class of the rows that the cross-entropy ignores; negative beside probabilities.
        label_smoothing: share of the target that is spread over all classes, from 0 to 1, as in ``F.cross_entropy``.
        standardize: whether the distillation standardises logits first, as in :func:`kd_loss`.

    Returns:
        ``KDTerms(total, kd, ce)``; see :class:`KDTerms`.

    Raises:
        TypeError: for an argument of the wrong type or dtype.
        ValueError: for a wrong shape, device or value, and with ``standardize`` for a teacher that requires a gradient.
            A class out of range raises on the CPU only. On a GPU it is a device-side assertion, as in
            ``F.cross_entropy``, because the check would cost a synchronisation.
    """
    if standardize is False and tries_at_once(student_logits, teacher_logits) and runs_cpu_kernels():
        shape = student_logits.shape
        if _logits.fits_one_student(shape) and _logits.are_classes(target) and not isinstance(temperature, Tensor):
            try:
                scalars = _kd_ce_scalars(temperature, kd_weight, ce_weight, ignore_index, label_smoothing, shape[0])
                arguments = target, scalars, ignore_index
                total, ce, kd = one_student(arguments, teacher_logits, student_logits)
                return KDTerms(total, kd, ce)
            except Refused:
                pass
    if checked():
        _check_pair(student_logits, teacher_logits, temperature)
        check.check_integer("ignore_index", ignore_index)
        check_target(target, student_logits, ignore_index)
        check_weights(kd_weight=kd_weight, ce_weight=ce_weight)
        check.check_fraction("label_smoothing", label_smoothing)
        check.check_flag("standardize", standardize)
    check.check_constant("target", target)
    if standardize:
        check.check_constant("teacher_logits", teacher_logits)
    if student_logits.dim() != 2:
        return _dense.kd_ce_loss(
            kd_ce_loss,
            student_logits,
            teacher_logits,
            target,
            temperature,
            kd_weight=kd_weight,
            ce_weight=ce_weight,
            ignore_index=ignore_index,
            label_smoothing=label_smoothing,
            standardize=standardize,
        )
    if isinstance(temperature, Tensor):
        student_logits, teacher_logits = widened_beside(tuple(widened(student_logits, teacher_logits)), target)
        kd = _kd_loss_at(temperature, student_logits, teacher_logits, "batchmean", standardize=standardize)
        ce = cross_entropy(student_logits, target, ignore_index, label_smoothing)
        return KDTerms(kd_weight * kd + ce_weight * ce, kd.detach(), ce.detach())
    ops = kernels(student_logits.device.type)
    if ops is None:
        return reference.kd_ce_loss(
            student_logits,
            teacher_logits,
            target,
            temperature,
            kd_weight=kd_weight,
            ce_weight=ce_weight,
            ignore_index=ignore_index,
            label_smoothing=label_smoothing,
            standardize=standardize,
        )
    options = _kd_ce_options(temperature, kd_weight, ce_weight, ignore_index, label_smoothing, student_logits.shape[0])
    if standardize:
        return _standardized_kd_ce(ops, student_logits, teacher_logits, target, options)
    total, _, ce, kd = fused(ops, teacher_logits, (student_logits,), target, options)
    return KDTerms(total, kd, ce)


def sftn_loss(
    teacher_logits: Tensor,
    branch_logits: Sequence[Tensor] | Tensor,
    target: Tensor,
    temperature: float = 1.0,
    *,
    teacher_weight: float = 1.0,
    ce_weight: float = 1.0,
    kl_weight: float = 3.0,
    direction: str = "teacher_to_branch",
    branch_reduction: str = "mean",
) -> SFTNTerms:
    """Compute the loss of a teacher trained with K student branches (Park et al., NeurIPS 2021).

    ``teacher_weight * CE(t, y) + ce_weight * mean_i CE(b_i, y)
    + kl_weight * T^2 mean_i KL(softmax(t / T) || softmax(b_i / T))``

    Gradients flow into the teacher and the branches. The defaults are the paper's for CIFAR-100. The cross-entropies
    ignore rows of class -100.

    Args:
        teacher_logits: ``[N, C]``.
        branch_logits: K tensors ``[N, C]``, or one ``[K, N, C]``.
        target: ``[N]`` int64 classes, or ``[N, C]`` probabilities, as in :func:`kd_ce_loss`.
        temperature: ``T`` of the divergence, from 1e-12 to 1e12.
        teacher_weight: weight of the teacher's cross-entropy.
        ce_weight: weight of the branches' cross-entropy.
        kl_weight: weight of the divergence.
        direction: ``"teacher_to_branch"`` for KL(teacher || branch), ``"branch_to_teacher"`` for KL(branch || teacher).
        branch_reduction: ``"mean"`` or ``"sum"`` over the branches, in both of their terms.

    Returns:
        ``SFTNTerms(total, teacher_ce, branch_ce, branch_kl)``; see :class:`SFTNTerms`.

    Raises:
        TypeError: for an argument of the wrong type or dtype.
        ValueError: for a wrong shape, device or value; as in :func:`kd_ce_loss` for a class out of range.
    """
    if checked():
        _check_branches(branch_logits)
    branches = branch_logits.unbind() if isinstance(branch_logits, Tensor) else branch_logits
    if checked():
        check.check_logits("teacher_logits", teacher_logits)
        for i, branch in enumerate(branches):
            check.check_logits_like(f"branch_logits[{i}]", branch, "teacher_logits", teacher_logits)
        check.check_temperature(temperature)
        check_target(target, teacher_logits)
        check_weights(teacher_weight=teacher_weight, ce_weight=ce_weight, kl_weight=kl_weight)
        check.check_choice("direction", direction, DIRECTIONS)
        check.check_choice("branch_reduction", branch_reduction, BRANCH_REDUCTIONS)
    check.check_constant("target", target)
    ops = kernels(teacher_logits.device.type)
    if ops is None:
        return reference.sftn_loss(
            teacher_logits,
            branches,
            target,
            temperature,
            teacher_weight=teacher_weight,
            ce_weight=ce_weight,
            kl_weight=kl_weight,
            direction=direction,
            branch_reduction=branch_reduction,
        )
    branch_scale = 1.0 / len(branches) if branch_reduction == "mean" else 1.0
    options = Options(
        float(temperature),
        teacher_weight=float(teacher_weight),
        ce_weight=float(ce_weight),
        kl_weight=float(kl_weight),
        branch_scale=branch_scale,
        kl_scale=temperature**2 * branch_scale / max(teacher_logits.shape[0], 1),
        student_to_teacher=direction == "branch_to_teacher",
    )
    total, teacher_ce, branch_ce, branch_kl = fused(ops, teacher_logits, branches, target, options)
    if teacher_weight == 0:  # the kernels skip terms that the total does not need
        teacher_ce = cross_entropy(teacher_logits.detach().to(teacher_ce.dtype), target)
    return SFTNTerms(total, teacher_ce, branch_ce, branch_kl)


def _check_branches(branch_logits: Any) -> None:
    if isinstance(branch_logits, Tensor):
        check.check_tensor("branch_logits", branch_logits)
        if branch_logits.dim() != 3:
            raise ValueError(
                f"branch_logits must be K tensors [N, C] or one [K, N, C], got {list(branch_logits.shape)}"
            )
    elif not isinstance(branch_logits, (list, tuple)):
        kind = type(branch_logits).__name__
        raise TypeError(f"branch_logits must be a list or tuple of tensors or one tensor, got {kind}")
    if len(branch_logits) == 0:
        raise ValueError("branch_logits must hold at least one branch, got none")


def _kd_loss_at(
    temperature: Tensor, student_logits: Tensor, teacher_logits: Tensor, reduction: str, *, standardize: bool
) -> Tensor:
    """Return :func:`kd_loss` at a temperature that the host does not know."""
    logits = widened(student_logits, teacher_logits)
    if standardize:
        logits = [standardized(x) for x in logits]
    t = tensor_as(logits[0], temperature)
    student, teacher = (_scaled(x, t) for x in logits)
    return t**2 * kd_loss(student, teacher, 1.0, reduction=reduction)


def _check_pair(student_logits: Any, teacher_logits: Any, temperature: Any) -> None:
    check_logits("student_logits", student_logits)
    check.check_logits_like("teacher_logits", teacher_logits, "student_logits", student_logits)
    if isinstance(temperature, Tensor):
        check_temperature_tensor(temperature, student_logits)
    else:
        check.check_temperature(temperature)


def _kd_options(temperature: float, reduction: str, n: int) -> Options:
    scale = temperature**2
    if reduction == "batchmean":
        scale /= max(n, 1)
    return Options(float(temperature), kl_scale=scale, rows=reduction == "none")


def _kd_ce_options(
    temperature: float, kd_weight: float, ce_weight: float, ignore_index: int, label_smoothing: float, n: int
) -> Options:
    return Options(
        float(temperature),
        ce_weight=float(ce_weight),
        kl_weight=float(kd_weight),
        kl_scale=temperature**2 / max(n, 1),
        ignore_index=ignore_index,
        label_smoothing=float(label_smoothing),
    )


@remembered
def _kd_scalars(temperature: Any, reduction: Any, n: int) -> Tensor:
    check.check_temperature(temperature)
    check.check_choice("reduction", reduction, REDUCTIONS)
    return packed(_kd_options(temperature, reduction, n))


@remembered
def _kd_ce_scalars(
    temperature: Any, kd_weight: Any, ce_weight: Any, ignore_index: Any, label_smoothing: Any, n: int
) -> Tensor:
    check.check_temperature(temperature)
    check_weights(kd_weight=kd_weight, ce_weight=ce_weight)
    check.check_integer("ignore_index", ignore_index)
    check.check_fraction("label_smoothing", label_smoothing)
    return packed(_kd_ce_options(temperature, kd_weight, ce_weight, ignore_index, label_smoothing, n))


def _standardized_kd_ce(ops: Any, student: Tensor, teacher: Tensor, target: Tensor, options: Options) -> KDTerms:
    """Compute KD on standardised logits, and the cross-entropy on the logits as they are."""
    of_kd = _standardized(options.temperature, options.kl_scale)._replace(weight=options.kl_weight)
    if options.label_smoothing == 0 and takes_cross_entropy(ops, target, options.ignore_index):
        both = of_kd._replace(
            label=Label.HARD_CROSS_ENTROPY,
            label_weight=options.ce_weight,
            label_scale=1 / max(student.shape[0], 1),
            ignore_index=options.ignore_index,
        )
        total, parts = fused_divergence(ops, student, teacher, target, both)
        ce, kd = parts.unbind()
        return KDTerms(total, kd, ce)
    # Both gradients are added before they are rounded.
    student, teacher = widened_beside(tuple(widened(student, teacher)), target)
    total, parts = fused_divergence(ops, student, teacher, None, of_kd)
    ce_total, _, ce, _ = fused(ops, teacher, (student,), target, options._replace(temperature=1.0, kl_weight=0.0))
    return KDTerms(total + ce_total, parts[1], ce)


def _standardized(temperature: float, scale: float) -> DivergenceOptions:
    return DivergenceOptions(
        student_temperature=float(temperature), teacher_temperature=float(temperature), scale=scale, standardize=True
    )


def check_weights(**weights: Any) -> None:
    """Raise unless the weights of a loss's terms are finite numbers."""
    for name, value in weights.items():
        check.check_finite(name, value)
