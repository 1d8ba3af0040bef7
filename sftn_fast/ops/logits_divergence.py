"""Distillation losses since 2021 on pairs of class distributions: DKD, NKD, RLD, TTM and divergences besides KL."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from sftn_fast.ops import reference
from sftn_fast.ops import validation as check
from sftn_fast.ops._backend import kernels
from sftn_fast.ops._checking import checked
from sftn_fast.ops._logits_divergence import Divergence, Kept, Label, Options, fused_divergence
from sftn_fast.ops.terms import DKDTerms

REDUCTIONS = ("batchmean", "sum", "none")
KINDS = {
    "ab": Divergence.AB,
    "jsd": Divergence.JSD,
    "tvd": Divergence.TVD,
    "reverse_kl": Divergence.REVERSE_KL,
    "skew_kl": Divergence.SKEW_KL,
    "skew_reverse_kl": Divergence.SKEW_REVERSE_KL,
}


def divergence_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: float = 1.0,
    *,
    kind: str = "ab",
    alpha: float = 0.8,
    beta: float = 0.3,
    reduction: str = "batchmean",
) -> Tensor:
    """Compute a divergence between ``P = softmax(t / T)`` and ``Q = softmax(s / T)``, without a factor of ``T^2``.

    - ``"ab"``: ``-sum(P^a Q^b - a / (a + b) P^(a + b) - b / (a + b) Q^(a + b)) / (a b)`` with ``a = alpha`` and
      ``b = beta`` (ABKD, Wang et al., ICML 2025). Towards (1, 0) it becomes KL(P || Q), towards (0, 1) KL(Q || P).
    - ``"jsd"``: ``beta KL(P || M) + (1 - beta) KL(Q || M)`` with ``M = beta P + (1 - beta) Q``: Jensen-Shannon. It
      tends to 0 for ``beta`` 0 and 1, where other libraries switch to KL.
    - ``"tvd"``: ``sum |P - Q| / 2``, the total variation distance.
    - ``"reverse_kl"``: ``KL(Q || P)``.
    - ``"skew_kl"``: ``KL(P || alpha P + (1 - alpha) Q)`` (DistiLLM, Ko et al., ICML 2024). Their code leaves out the
      teacher's entropy, which is constant.
    - ``"skew_reverse_kl"``: ``KL(Q || alpha Q + (1 - alpha) P)``. DistiLLM's ``alpha`` of both is 0.1.

    Logits may be ``-inf``: a class that both rule out contributes nothing. An empty batch gives 0.

    Args:
        student_logits: ``[N, C]``.
        teacher_logits: ``[N, C]``, a constant.
        temperature: ``T``, from 1e-12 to 1e12.
        kind: the divergence, one of the above.
        alpha: from 0.01 to 100 for ``"ab"``; from 0 to 1, a share, for the skew divergences.
        beta: from 0.01 to 100 for ``"ab"``; from 0 to 1, the teacher's weight, for ``"jsd"``.
        reduction: ``"batchmean"`` (sum / N), ``"sum"``, or ``"none"`` for ``[N]``.

    Returns:
        0-dim, or ``[N]``; float32, or float64 for float64 logits.

    Raises:
        TypeError: for an argument of the wrong type or dtype.
        ValueError: for a wrong shape, device or value, and for a teacher that requires a gradient.
    """
    if checked():
        check.check_logits_pair("student_logits", student_logits, "teacher_logits", teacher_logits)
        check.check_temperature(temperature)
        check.check_choice("kind", kind, tuple(KINDS))
        check_parameters(kind, alpha, beta)
        check.check_choice("reduction", reduction, REDUCTIONS)
    check.check_constant("teacher_logits", teacher_logits)
    ops = kernels(student_logits.device.type)
    if ops is None:
        return reference.divergence_loss(
            student_logits, teacher_logits, temperature, kind=kind, alpha=alpha, beta=beta, reduction=reduction
        )
    options = Options(
        KINDS[kind],
        student_temperature=float(temperature),
        teacher_temperature=float(temperature),
        alpha=float(alpha),
        beta=float(beta),
        scale=1 / _count(student_logits) if reduction == "batchmean" else 1.0,
        rows=reduction == "none",
    )
    return fused_divergence(ops, student_logits, teacher_logits, None, _without_limits(kind, options))[0]


def ttm_loss(student_logits: Tensor, teacher_logits: Tensor, *, gamma: float = 0.1, weighted: bool = False) -> Tensor:
    """Compute transformed teacher matching (Zheng & Yang, ICLR 2024), a KL to a smoothed teacher.

    The loss is the mean over rows of ``KL(q || softmax(s))`` with ``q = softmax(gamma t)``: the student keeps
    temperature 1, and there is no factor of ``T^2``. With ``weighted`` (WTTM), a row counts as much as its teacher is
    smooth: times ``sum_c softmax(t)_c^gamma``, which is from 1 to ``C^(1 - gamma)`` for a ``gamma`` up to 1. An empty
    batch gives 0.

    Args:
        student_logits: ``[N, C]``.
        teacher_logits: ``[N, C]``, a constant.
        gamma: the inverse of the teacher's temperature, from 1e-12 to 1e12. The authors' are from 0.1 to 0.8.
        weighted: whether rows have weights.

    Returns:
        0-dim; float32, or float64 for float64 logits.

    Raises:
        TypeError: for an argument of the wrong type or dtype.
        ValueError: for a wrong shape, device or value, and for a teacher that requires a gradient.
    """
    if checked():
        check.check_logits_pair("student_logits", student_logits, "teacher_logits", teacher_logits)
        check.check_temperature(gamma, "gamma")
        check.check_flag("weighted", weighted)
    check.check_constant("teacher_logits", teacher_logits)
    ops = kernels(student_logits.device.type)
    if ops is None:
        return reference.ttm_loss(student_logits, teacher_logits, gamma=gamma, weighted=weighted)
    options = Options(teacher_temperature=1 / gamma, scale=1 / _count(student_logits), weighted=weighted)
    return fused_divergence(ops, student_logits, teacher_logits, None, options)[0]


def nkd_loss(
    student_logits: Tensor, teacher_logits: Tensor, target: Tensor, temperature: float = 1.0, *, gamma: float = 1.5
) -> Tensor:
    """Compute normalized distillation (Yang et al., ICCV 2023), without the cross-entropy that it is added to.

    The loss is the mean over rows of ``-softmax(t)_y log softmax(s)_y + gamma T^2 H(p, q)``. ``p`` and ``q`` are the
    teacher's and the student's distributions at ``T`` over the classes other than ``y``, and H is their cross-entropy:
    it includes the teacher's entropy, so its least value is not 0. The authors' settings are ``T`` 1 and ``gamma`` 1.5
    on ImageNet, 3 and 3.5 on CIFAR-100. An empty batch gives 0, and so do the other classes if the teacher rules out
    all of them.

    Args:
        student_logits: ``[N, C]``.
        teacher_logits: ``[N, C]``, a constant.
        target: ``[N]`` int64 classes.
        temperature: ``T`` of the other classes, from 1e-12 to 1e12.
        gamma: weight of the other classes.

    Returns:
        0-dim; float32, or float64 for float64 logits.

    Raises:
        TypeError: for an argument of the wrong type or dtype.
        ValueError: for a wrong shape, device or value, and for a teacher that requires a gradient; as in
            :func:`kd_ce_loss` for a class out of range.
    """
    if checked():
        check.check_logits_pair("student_logits", student_logits, "teacher_logits", teacher_logits)
        check.check_temperature(temperature)
        check.check_target(target, student_logits)
        check.check_finite("gamma", gamma)
    check.check_constant("teacher_logits", teacher_logits)
    ops = kernels(student_logits.device.type)
    if ops is None:
        return reference.nkd_loss(student_logits, teacher_logits, target, temperature, gamma=gamma)
    options = Options(
        Divergence.CROSS_ENTROPY,
        Kept.OTHERS,
        Label.CROSS_ENTROPY,
        student_temperature=float(temperature),
        teacher_temperature=float(temperature),
        weight=float(gamma),
        scale=temperature**2 / _count(student_logits),
        label_weight=1.0,
        label_scale=1 / _count(student_logits),
    )
    return fused_divergence(ops, student_logits, teacher_logits, target, options)[0]


def dkd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    target: Tensor,
    temperature: float = 4.0,
    *,
    target_weight: float = 1.0,
    nontarget_weight: float = 8.0,
    standardize: bool = False,
) -> DKDTerms:
    """Compute decoupled distillation (Zhao et al., CVPR 2022): two parts of KL with a weight each.

    ``target`` is ``T^2 KL(b_t || b_s)`` with ``b`` the probability of the label's class against all others together.
    ``nontarget`` is ``T^2 KL(q_t || q_s)`` with ``q`` the distribution over the other classes alone. Both are means
    over rows, at temperature ``T``. An empty batch gives 0, and so do the other classes if the teacher rules out all
    of them.

    Args:
        student_logits: ``[N, C]``.
        teacher_logits: ``[N, C]``, a constant.
        target: ``[N]`` int64 classes.
        temperature: ``T``, from 1e-12 to 1e12.
        target_weight: weight of ``target``, the authors' alpha.
        nontarget_weight: weight of ``nontarget``, the authors' beta.
        standardize: whether logits are standardised first, as in :func:`kd_loss`.

    Returns:
        ``DKDTerms(total, target, nontarget)``; see :class:`DKDTerms`.

    Raises:
        TypeError: for an argument of the wrong type or dtype.
        ValueError: for a wrong shape, device or value, and for a teacher that requires a gradient; as in
            :func:`kd_ce_loss` for a class out of range.
    """
    if checked():
        check.check_logits_pair("student_logits", student_logits, "teacher_logits", teacher_logits)
        check.check_temperature(temperature)
        check.check_target(target, student_logits)
        check.check_finite("target_weight", target_weight)
        check.check_finite("nontarget_weight", nontarget_weight)
        check.check_flag("standardize", standardize)
    check.check_constant("teacher_logits", teacher_logits)
    ops = kernels(student_logits.device.type)
    if ops is None:
        return reference.dkd_loss(
            student_logits,
            teacher_logits,
            target,
            temperature,
            target_weight=target_weight,
            nontarget_weight=nontarget_weight,
            standardize=standardize,
        )
    scale = temperature**2 / _count(student_logits)
    options = Options(
        Divergence.KL,
        Kept.OTHERS,
        Label.KL,
        student_temperature=float(temperature),
        teacher_temperature=float(temperature),
        label_temperature=float(temperature),
        weight=float(nontarget_weight),
        scale=scale,
        label_weight=float(target_weight),
        label_scale=scale,
        standardize=standardize,
    )
    total, parts = fused_divergence(ops, student_logits, teacher_logits, target, options)
    return DKDTerms(total, *parts.unbind())


def rld_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    target: Tensor,
    temperature: float = 4.0,
    *,
    confidence_weight: float = 1.0,
    ranking_weight: float = 8.0,
    confidence_temperature: float = 1.0,
) -> Tensor:
    """Compute refined logit distillation (Sun et al., ICCV 2025), without the cross-entropy that it is added to.

    The loss is the mean over rows of ``confidence_weight tau^2 KL([m, 1 - m] || [q_y, 1 - q_y]) + ranking_weight T^2
    KL(p || q)``. ``m`` is the teacher's largest probability and ``q_y`` the student's of the label, both at
    ``tau = confidence_temperature``. ``p`` and ``q`` are the distributions at ``T`` over the classes to which the
    teacher gives a lower logit than to the label, so that the student learns no ranking above the label. Without such
    a class, that term is 0. An empty batch gives 0.

    Args:
        student_logits: ``[N, C]``.
        teacher_logits: ``[N, C]``, a constant.
        target: ``[N]`` int64 classes.
        temperature: ``T`` of the ranking, from 1e-12 to 1e12.
        confidence_weight: weight of the first term, the authors' alpha.
        ranking_weight: weight of the second term, the authors' beta.
        confidence_temperature: ``tau``, from 1e-12 to 1e12.

    Returns:
        0-dim; float32, or float64 for float64 logits.

    Raises:
        TypeError: for an argument of the wrong type or dtype.
        ValueError: for a wrong shape, device or value, and for a teacher that requires a gradient; as in
            :func:`kd_ce_loss` for a class out of range.
    """
    if checked():
        check.check_logits_pair("student_logits", student_logits, "teacher_logits", teacher_logits)
        check.check_temperature(temperature)
        check.check_target(target, student_logits)
        check.check_finite("confidence_weight", confidence_weight)
        check.check_finite("ranking_weight", ranking_weight)
        check.check_temperature(confidence_temperature, "confidence_temperature")
    check.check_constant("teacher_logits", teacher_logits)
    ops = kernels(student_logits.device.type)
    if ops is None:
        return reference.rld_loss(
            student_logits,
            teacher_logits,
            target,
            temperature,
            confidence_weight=confidence_weight,
            ranking_weight=ranking_weight,
            confidence_temperature=confidence_temperature,
        )
    options = Options(
        Divergence.KL,
        Kept.BELOW,
        Label.TOP_KL,
        student_temperature=float(temperature),
        teacher_temperature=float(temperature),
        label_temperature=float(confidence_temperature),
        weight=float(ranking_weight),
        scale=temperature**2 / _count(student_logits),
        label_weight=float(confidence_weight),
        label_scale=confidence_temperature**2 / _count(student_logits),
    )
    return fused_divergence(ops, student_logits, teacher_logits, target, options)[0]


def _count(logits: Tensor) -> int:
    return max(logits.shape[0], 1)


def _without_limits(kind: str, options: Options) -> Options:
    """Return options for a share of 0 or 1 by other divergences: logarithms of a mixture take shares between them."""
    if kind == "jsd" and options.beta in (0, 1):  # always 0; NaN shows all the same
        return options._replace(divergence=Divergence.TVD, scale=0.0)
    if kind in ("skew_kl", "skew_reverse_kl") and options.alpha == 0:
        return options._replace(divergence=Divergence.KL if kind == "skew_kl" else Divergence.REVERSE_KL)
    return options


def check_parameters(kind: str, alpha: Any, beta: Any) -> None:
    """Raise unless the divergence takes the parameters. It ignores those that it doesn't have, but not their type."""
    check.check_finite("alpha", alpha)
    check.check_finite("beta", beta)
    if kind == "ab":
        check.check_positive("alpha", alpha, 0.01, 100)
        check.check_positive("beta", beta, 0.01, 100)
    if kind in ("skew_kl", "skew_reverse_kl"):
        check.check_fraction("alpha", alpha)
    if kind == "jsd":
        check.check_fraction("beta", beta)
