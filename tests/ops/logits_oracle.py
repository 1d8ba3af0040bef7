"""The losses on logits in float64, written to be read: the oracle for all backends.

A probability of 0 contributes nothing to a divergence, whatever stands against it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F


def kd_loss(student, teacher, temperature=4.0, *, reduction="batchmean"):
    rows = temperature**2 * divergence(teacher, student, temperature)
    return {"none": rows, "sum": rows.sum(), "batchmean": rows.sum() / max(len(rows), 1)}[reduction]


def kd_ce_loss(
    student,
    teacher,
    target,
    temperature=4.0,
    *,
    kd_weight=0.9,
    ce_weight=0.1,
    ignore_index=-100,
    label_smoothing=0.0,
):
    kd = kd_loss(student, teacher, temperature)
    ce = cross_entropy(student, target, ignore_index, label_smoothing)
    return kd_weight * kd + ce_weight * ce, kd, ce


def sftn_loss(
    teacher,
    branches,
    target,
    temperature=1.0,
    *,
    teacher_weight=1.0,
    ce_weight=1.0,
    kl_weight=3.0,
    direction="teacher_to_branch",
    branch_reduction="mean",
):
    share = 1 / len(branches) if branch_reduction == "mean" else 1
    teacher_ce = cross_entropy(teacher, target)
    branch_ce = share * sum(cross_entropy(branch, target) for branch in branches)
    branch_kl = 0
    for branch in branches:
        p, q = (teacher, branch) if direction == "teacher_to_branch" else (branch, teacher)
        branch_kl = branch_kl + share * temperature**2 * divergence(p, q, temperature).sum() / max(len(target), 1)
    total = teacher_weight * teacher_ce + ce_weight * branch_ce + kl_weight * branch_kl
    return total, teacher_ce, branch_ce, branch_kl


def divergence(p, q, temperature):
    """Compute KL(softmax(p / T) || softmax(q / T)) of each row."""
    p_log, q_log = F.log_softmax(p.double() / temperature, 1), F.log_softmax(q.double() / temperature, 1)
    weight = p_log.exp()
    return (weight * torch.where(weight == 0, 0, p_log - q_log)).sum(1)


def cross_entropy(logits, target, ignore_index=-100, label_smoothing=0.0):
    if target.is_floating_point():
        target = (1 - label_smoothing) * target.double() + label_smoothing / logits.shape[1]
        log_p = F.log_softmax(logits.double(), 1)
        return -(target * torch.where(target == 0, 0, log_p)).sum() / max(len(target), 1)
    logits, target = logits.double()[target != ignore_index], target[target != ignore_index]
    if len(target) == 0:
        return logits.sum() * 0
    return F.cross_entropy(logits, target, label_smoothing=label_smoothing)
