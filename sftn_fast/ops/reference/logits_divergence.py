"""Divergences between a student's and a teacher's classes, in plain PyTorch.

See :mod:`sftn_fast.ops.logits_divergence` for the formulas. Each class contributes a term that is 0 where both
probabilities are equal and of second order around it. So a difference between two large sums never stands for a small
loss, and an error that is common to all classes of a row cancels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from sftn_fast.ops._dtype import widened
from sftn_fast.ops.reference.logits import NEAR, exp_remainder, standardized
from sftn_fast.ops.terms import DKDTerms
from sftn_fast.ops.validation import check_classes


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
    """Compute :func:`sftn_fast.ops.divergence_loss` in plain PyTorch."""
    student_logits, teacher_logits = widened(student_logits, teacher_logits)
    pair = pair_of(_scaled(student_logits, temperature), _scaled(teacher_logits, temperature))
    rows = _terms(pair, kind, alpha, beta).sum(dim=1)
    if reduction == "none":
        return rows
    return _mean(rows) if reduction == "batchmean" else rows.sum()


def ttm_loss(student_logits: Tensor, teacher_logits: Tensor, *, gamma: float = 0.1, weighted: bool = False) -> Tensor:
    """Compute :func:`sftn_fast.ops.ttm_loss` in plain PyTorch."""
    student_logits, teacher_logits = widened(student_logits, teacher_logits)
    teacher_scaled = _scaled(teacher_logits, 1)
    rows = kl_rows(_scaled(student_logits, 1), gamma * teacher_scaled)
    if weighted:
        rows = rows * (gamma * teacher_scaled.log_softmax(dim=1)).exp().sum(dim=1)
    return _mean(rows)


def nkd_loss(
    student_logits: Tensor, teacher_logits: Tensor, target: Tensor, temperature: float = 1.0, *, gamma: float = 1.5
) -> Tensor:
    """Compute :func:`sftn_fast.ops.nkd_loss` in plain PyTorch."""
    student_logits, teacher_logits = widened(student_logits, teacher_logits)
    is_target = _is_target(target, student_logits)
    p, minus_q_log = teacher_logits.softmax(dim=1), -student_logits.log_softmax(dim=1)
    at_target = torch.where(is_target & (p > 0), p * minus_q_log, 0.0).sum(dim=1)
    others = _pair_of_others(student_logits, teacher_logits, is_target, temperature)
    entropy = torch.where(others.p == 0, 0.0, -others.p * others.p_log)
    return _mean(at_target) + gamma * temperature**2 * _mean((_kl(others) + entropy).sum(dim=1))


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
    """Compute :func:`sftn_fast.ops.dkd_loss` in plain PyTorch."""
    student_logits, teacher_logits = widened(student_logits, teacher_logits)
    if standardize:
        student_logits, teacher_logits = standardized(student_logits), standardized(teacher_logits)
    is_target = _is_target(target, student_logits)
    others = _pair_of_others(student_logits, teacher_logits, is_target, temperature)
    binary = _against_others(student_logits, teacher_logits, is_target, temperature, others)
    of_target = temperature**2 * _mean(binary)
    of_others = temperature**2 * _mean(_kl(others).sum(dim=1))
    total = target_weight * of_target + nontarget_weight * of_others
    return DKDTerms(total, of_target.detach(), of_others.detach())


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
    """Compute :func:`sftn_fast.ops.rld_loss` in plain PyTorch."""
    student_logits, teacher_logits = widened(student_logits, teacher_logits)
    is_target = _is_target(target, student_logits)
    of_target = torch.where(is_target, teacher_logits, 0.0).sum(dim=1, keepdim=True)
    ranking = _kl(_pair_of_others(student_logits, teacher_logits, ~(teacher_logits < of_target), temperature))
    # The largest probability stands for the label's, so let the two change places.
    is_top = _is_target(teacher_logits.argmax(dim=1), teacher_logits)
    top = teacher_logits.amax(dim=1, keepdim=True)
    teacher_logits = torch.where(is_target, top, torch.where(is_top, of_target, teacher_logits))
    others = _pair_of_others(student_logits, teacher_logits, is_target, confidence_temperature)
    confidence = _against_others(student_logits, teacher_logits, is_target, confidence_temperature, others)
    of_confidence = confidence_weight * confidence_temperature**2 * _mean(confidence)
    return of_confidence + ranking_weight * temperature**2 * _mean(ranking.sum(dim=1))


# ---- pairs of distributions ----


class Pair(NamedTuple):
    """The distributions of teacher and student over the classes, ``[N, C]`` each."""

    p: Tensor  # the teacher's
    q: Tensor  # the student's
    p_log: Tensor
    q_log: Tensor
    y: Tensor  # log(q / p), precise even where it is small; 0 where both are 0
    mean: Tensor  # [N, 1], of the student's logit less the teacher's, after
    log_sum: Tensor  # [N, 1]: y = (difference - mean) - log_sum


def pair_of(student_scaled: Tensor, teacher_scaled: Tensor) -> Pair:
    """Return the distributions of logits that the temperature divided."""
    q_log, p_log = student_scaled.log_softmax(dim=1), teacher_scaled.log_softmax(dim=1)
    p, q = p_log.exp(), q_log.exp()
    ruled_out = (student_scaled == -torch.inf) & (teacher_scaled == -torch.inf)
    difference = student_scaled.masked_fill(ruled_out, 0) - teacher_scaled.masked_fill(ruled_out, 0)
    ratio = student_scaled.logsumexp(dim=1, keepdim=True) - teacher_scaled.logsumexp(dim=1, keepdim=True)

    # The digits of the two logarithms cancel in rows that are near each other. There sum p exp(y) around the mean.
    mean = torch.where(p == 0, 0.0, p * difference).sum(dim=1, keepdim=True).detach()
    around = (difference - mean).masked_fill(ruled_out, 0)
    near = (around.detach().abs() <= NEAR).all(dim=1, keepdim=True)
    of_near = (p * torch.where(near, around, 0.0).expm1()).sum(dim=1, keepdim=True).log1p()
    mean, log_sum = torch.where(near, mean, 0.0), torch.where(near, of_near, ratio)
    y = ((difference - mean) - log_sum).masked_fill((p == 0) & (q == 0), 0)
    return Pair(p, q, p_log, q_log, y, mean, log_sum)


def kl_rows(student_scaled: Tensor, teacher_scaled: Tensor) -> Tensor:
    """Return ``KL(teacher || student)`` of each row, ``[N]``."""
    return _kl(pair_of(student_scaled, teacher_scaled)).sum(dim=1)


def _pair_of_others(student_logits: Tensor, teacher_logits: Tensor, masked: Tensor, temperature: float) -> Pair:
    """Return the distributions over the classes that are not masked, zeros if the teacher rules out all of them."""
    empty = (masked | (teacher_logits == -torch.inf)).all(dim=1, keepdim=True)
    student, teacher = (
        _scaled(x.masked_fill(masked, -torch.inf).masked_fill(empty, 0), temperature)
        for x in (student_logits, teacher_logits)
    )
    pair = pair_of(student, teacher)
    return pair._replace(p=pair.p.masked_fill(empty, 0), q=pair.q.masked_fill(empty, 0))


def _against_others(
    student_logits: Tensor, teacher_logits: Tensor, is_class: Tensor, temperature: float, others: Pair
) -> Tensor:
    """Return ``KL(b_t || b_s)`` of each row, ``b`` the probability of one class against all others together."""
    student, teacher = (_scaled(x, temperature) for x in (student_logits, teacher_logits))
    u, v = _log_odds(student, is_class), _log_odds(teacher, is_class)
    # Logarithms of the ratio of the class's probabilities, and of the others'. `others` has other maxima.
    student, teacher = (_scaled_by_others(x, is_class, temperature) for x in (student_logits, teacher_logits))
    apart = ((student - teacher) - others.mean.squeeze(1)) - others.log_sum.squeeze(1)
    near = apart.detach().abs() <= NEAR
    apart = torch.where(near, apart, 0.0)
    other_near = -(v.sigmoid() * apart.expm1()).log1p()
    class_far, other_far = _less(u, v), _less(-u, -v)
    y = torch.stack([torch.where(near, apart + other_near, class_far), torch.where(near, other_near, other_far)], dim=1)
    p, q = (torch.stack([x.sigmoid(), (-x).sigmoid()], dim=1) for x in (v, u))
    return _excess(p, q, y).sum(dim=1)


def _less(u: Tensor, v: Tensor) -> Tensor:
    """Return ``log sigmoid(u) - log sigmoid(v)``, 0 if both probabilities are 0."""
    neither = (u == -torch.inf) & (v == -torch.inf)
    return torch.where(neither, 0.0, logsigmoid(u)) - torch.where(neither, 0.0, logsigmoid(v))


def _log_odds(scaled: Tensor, is_class: Tensor) -> Tensor:
    """Return ``log(b / (1 - b))`` of each row, ``b`` the probability of one class: inf if it is the only one."""
    of_class = torch.where(is_class, scaled, 0.0).sum(dim=1)
    others = scaled.masked_fill(is_class, -torch.inf)
    highest = others.detach().amax(dim=1, keepdim=True).clamp(min=torch.finfo(scaled.dtype).min)
    total = (others - highest).exp().sum(dim=1)
    log_total = torch.where(total == 0, 1.0, total).log() + highest.squeeze(1)
    return of_class - torch.where(total == 0, -torch.inf, log_total)


def _scaled_by_others(logits: Tensor, is_class: Tensor, temperature: float) -> Tensor:
    """Return one class's logit, scaled as the others are in :func:`_pair_of_others`."""
    highest = logits.detach().masked_fill(is_class, -torch.inf).amax(dim=1)
    return (torch.where(is_class, logits, 0.0).sum(dim=1) - highest) / temperature


def _scaled(logits: Tensor, temperature: float) -> Tensor:
    # Subtract the maximum before the division: at temperature 0.05, logits of 1e4 would lose two digits.
    return (logits - logits.detach().amax(dim=1, keepdim=True)) / temperature


def _is_target(target: Tensor, logits: Tensor) -> Tensor:
    mask = torch.zeros_like(logits, dtype=torch.bool)
    try:
        return mask.scatter(1, target[:, None], True)
    except RuntimeError:
        check_classes(target, logits.shape[1])
        raise


def _mean(rows: Tensor) -> Tensor:
    return rows.sum() / max(len(rows), 1)


# ---- the terms of a class ----


def _terms(pair: Pair, kind: str, alpha: float, beta: float) -> Tensor:
    p, q, y = pair.p, pair.q, pair.y
    match kind:
        case "ab":
            return _alpha_beta(pair, alpha, beta)
        case "jsd":
            mixture = beta * p + (1 - beta) * q
            of_p = beta * _excess(p, mixture, _log_mixture(beta, y)) if beta > 0 else torch.zeros_like(p)
            of_q = (1 - beta) * _excess(q, mixture, _log_mixture(1 - beta, -y)) if beta < 1 else torch.zeros_like(q)
            return of_p + of_q
        case "tvd":
            return 0.5 * _difference(pair).abs()
        case "reverse_kl":
            return _excess(q, p, -y)
        case "skew_kl":
            return _excess(p, alpha * p + (1 - alpha) * q, _log_mixture(alpha, y))
        case _:  # skew_reverse_kl
            return _excess(q, alpha * q + (1 - alpha) * p, _log_mixture(alpha, -y))


def _kl(pair: Pair) -> Tensor:
    return _excess(pair.p, pair.q, pair.y)


def _excess(p: Tensor, m: Tensor, y: Tensor) -> Tensor:
    """Return ``p log(p / m) + m - p`` with ``y = log(m / p)``: the terms of KL(p || m), none below 0."""
    near = (y.detach().abs() <= NEAR) & (p > 0)
    y_near, y_far = torch.where(near, y, 0.0), torch.where(near | (p == 0), 0.0, y)
    return torch.where(near, p * exp_remainder(y_near), (m - p) - p * y_far)


def _difference(pair: Pair) -> Tensor:
    near = pair.y.detach().abs() <= NEAR
    return torch.where(near, pair.p * torch.where(near, pair.y, 0.0).expm1(), pair.q - pair.p)


def _log_mixture(share: float, y: Tensor) -> Tensor:
    """Return ``log(share + (1 - share) exp(y))``."""
    if share == 0:
        return y
    if share == 1:
        return torch.zeros_like(y)
    near, up = y.detach().abs() <= NEAR, y.detach() > 0
    y_near, y_up, y_down = torch.where(near, y, 0.0), torch.where(up, y, 0.0), torch.where(up, 0.0, y)
    far = torch.where(up, y_up + (1 - share + share * (-y_up).exp()).log(), (share + (1 - share) * y_down.exp()).log())
    return torch.where(near, ((1 - share) * y_near.expm1()).log1p(), far)


def _alpha_beta(pair: Pair, alpha: float, beta: float) -> Tensor:
    """Return the terms of ``-sum(p^a q^b - a / (a + b) p^(a + b) - b / (a + b) q^(a + b)) / (a b)``."""
    p, q, p_log, q_log, y = pair[:5]
    both = alpha + beta
    none = (p == 0) & (q == 0)
    p_log, q_log = p_log.masked_fill(none, 0), q_log.masked_fill(none, 0)
    near = both * y.detach().abs() <= NEAR
    y_near = torch.where(near, y, 0.0)
    of_near = exp_remainder(both * y_near) / (alpha * both) - exp_remainder(beta * y_near) / (alpha * beta)
    power, other_power = (both * p_log).exp(), (both * q_log).exp()
    product = (alpha * p_log + beta * q_log).exp()
    of_far = power / (beta * both) + other_power / (alpha * both) - product / (alpha * beta)
    return torch.where(none, 0.0, torch.where(near, power * of_near, of_far))
