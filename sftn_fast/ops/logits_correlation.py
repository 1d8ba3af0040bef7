"""DIST: the correlation of predictions with the teacher's, over the classes and over the batch."""

from __future__ import annotations

from torch import Tensor

from sftn_fast.ops import reference
from sftn_fast.ops import validation as check
from sftn_fast.ops._checking import checked
from sftn_fast.ops.terms import DISTTerms


def dist_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: float = 4.0,
    *,
    inter_weight: float = 1.0,
    intra_weight: float = 1.0,
) -> DISTTerms:
    """Compute DIST (Huang et al., NeurIPS 2022), as its authors do.

    With ``p = softmax(logits / T)`` of each network and ``r`` Pearson's correlation, ``inter`` is
    ``T^2 (1 - mean over images of r(p_s[n], p_t[n]))``: over the classes of an image. ``intra`` is
    ``T^2 (1 - mean over classes of r(p_s[:, c], p_t[:, c]))``: over the images of the batch.
    ``r = <a, b> / (|a| |b| + 1e-8)`` with ``a`` and ``b`` less their means.

    A constant row or column has ``r = 0``: that of a batch of one, of a single class, or of equal logits. An empty
    batch gives 0. ``intra`` relates images, so on several GPUs it needs the logits of the whole batch.

    Args:
        student_logits: ``[N, C]``.
        teacher_logits: ``[N, C]``. Receives a gradient too if it requires one.
        temperature: ``T``, from 1e-12 to 1e12.
        inter_weight: weight of the correlation over classes.
        intra_weight: weight of the correlation over images.

    Returns:
        ``DISTTerms(total, inter, intra)``; see :class:`DISTTerms`.

    Raises:
        TypeError: for an argument of the wrong type or dtype.
        ValueError: for a wrong shape, device or value.
    """
    if checked():
        check.check_logits_pair("student_logits", student_logits, "teacher_logits", teacher_logits)
        check.check_temperature(temperature)
        check.check_finite("inter_weight", inter_weight)
        check.check_finite("intra_weight", intra_weight)
    return reference.dist_loss(
        student_logits, teacher_logits, temperature, inter_weight=inter_weight, intra_weight=intra_weight
    )
