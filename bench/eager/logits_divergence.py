"""DKD, LSKD, NKD, RLD, TTM and divergences in PyTorch, with the steps of the authors' code."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def _mask(target: Tensor, logits: Tensor) -> Tensor:
    return torch.zeros_like(logits).scatter_(1, target[:, None], 1).bool()


def _binary(probabilities: Tensor, mask: Tensor) -> Tensor:
    """Return the class's probability and the sum of the others, ``[N, 2]``."""
    return torch.cat([(probabilities * mask).sum(1, keepdim=True), (probabilities * ~mask).sum(1, keepdim=True)], 1)


def _kl(student_log: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    return F.kl_div(student_log, teacher, reduction="batchmean") * temperature**2


def standardized(logits: Tensor) -> Tensor:
    return (logits - logits.mean(dim=-1, keepdim=True)) / (logits.std(dim=-1, keepdim=True) + 1e-7)


def lskd(student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
    """Compute KD on standardised logits with cross-entropy, at the authors' temperature 2 and weights 9 and 0.1."""
    student_log = F.log_softmax(standardized(student) / 2.0, dim=1)
    kd = _kl(student_log, F.softmax(standardized(teacher) / 2.0, dim=1), 2.0)
    return 0.1 * F.cross_entropy(student, target) + 9.0 * kd


def dkd(student: Tensor, teacher: Tensor, target: Tensor, temperature: float = 4.0) -> Tensor:
    """Compute DKD with weights 1 and 8. A large number subtracted from the class's logit leaves the others."""
    mask = _mask(target, student)
    binary_student = _binary(F.softmax(student / temperature, dim=1), mask)
    binary_teacher = _binary(F.softmax(teacher / temperature, dim=1), mask)
    of_target = _kl(binary_student.log(), binary_teacher, temperature)
    others_teacher = F.softmax(teacher / temperature - 1000.0 * mask, dim=1)
    others_student = F.log_softmax(student / temperature - 1000.0 * mask, dim=1)
    return of_target + 8.0 * _kl(others_student, others_teacher, temperature)


def nkd(student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
    """Compute NKD at temperature 1 with weight 1.5, on tensors without the class's column."""
    n, c = student.shape
    rest = ~_mask(target, student)
    others_student, others_teacher = (x[rest].reshape(n, c - 1) for x in (student, teacher))
    at_target = target[:, None]
    student_target = F.softmax(student, dim=1).gather(1, at_target)
    teacher_target = F.softmax(teacher, dim=1).gather(1, at_target).detach()
    of_target = -(teacher_target * student_target.log()).mean()
    cross = (F.softmax(others_teacher, dim=1) * F.log_softmax(others_student, dim=1)).sum(dim=1)
    return of_target - 1.5 * cross.mean()


def rld(student: Tensor, teacher: Tensor, target: Tensor, temperature: float = 4.0) -> Tensor:
    """Compute RLD with weights 1 and 8, and temperature 1 of the confidence."""
    mask = _mask(target, student)
    student_confidence = _binary(F.softmax(student, dim=1), mask)
    largest = F.softmax(teacher, dim=1).amax(dim=1, keepdim=True)
    confidence = _kl(student_confidence.log(), torch.cat([largest, 1 - largest], 1), 1.0)
    outranks = teacher >= teacher.gather(1, target[:, None])
    student_log = F.log_softmax((student / temperature).masked_fill(outranks, -1e9), dim=1)
    ranking = _kl(student_log, F.softmax((teacher / temperature).masked_fill(outranks, -1e9), dim=1), temperature)
    return confidence + 8.0 * ranking


def wttm(student: Tensor, teacher: Tensor, gamma: float = 0.1) -> Tensor:
    """Compute TTM with weights of the rows."""
    powers = F.softmax(teacher, dim=1) ** gamma
    weights = powers.sum(dim=1)
    divergence = F.kl_div(F.log_softmax(student, dim=1), powers / weights[:, None], reduction="none").sum(dim=1)
    return (weights * divergence).mean()


def alpha_beta(student: Tensor, teacher: Tensor, alpha: float = 0.8, beta: float = 0.3) -> Tensor:
    """Compute the alpha-beta divergence at temperature 1."""
    p, q = F.softmax(teacher, dim=1), F.softmax(student, dim=1)
    both = alpha + beta
    inner = p**alpha * q**beta - alpha / both * p**both - beta / both * q**both
    return -inner.sum(dim=1).mean() / (alpha * beta)


def jensen_shannon(student: Tensor, teacher: Tensor, beta: float = 0.5) -> Tensor:
    """Compute the Jensen-Shannon divergence at temperature 1, with ``beta`` the teacher's weight."""
    p_log, q_log = F.log_softmax(teacher, dim=1), F.log_softmax(student, dim=1)
    m_log = (beta * p_log.exp() + (1 - beta) * q_log.exp()).log()
    of_teacher, of_student = (F.kl_div(m_log, x, reduction="batchmean", log_target=True) for x in (p_log, q_log))
    return beta * of_teacher + (1 - beta) * of_student
