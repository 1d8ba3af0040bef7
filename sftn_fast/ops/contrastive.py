"""Contrastive representation distillation (CRD).

One read of each bank row yields both the loss and its gradient. The forward pass computes both and saves the gradient,
``[B, D]`` for each side. Writes to the memory happen outside the autograd function. The ops' schemas and formulas are
in ``csrc/contrastive.h``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sftn_fast.ops import reference
from sftn_fast.ops import validation as check
from sftn_fast.ops._autograd import Saved, first_derivatives, needs_function, savable
from sftn_fast.ops._backend import kernels
from sftn_fast.ops._checking import checked
from sftn_fast.ops._library import register_fake
from sftn_fast.ops.memory import CRDMemory, mark_written


def crd_loss(
    student_embedding: Tensor,
    teacher_embedding: Tensor,
    index: Tensor,
    negatives: Tensor,
    memory: CRDMemory,
    *,
    update: bool = True,
) -> Tensor:
    """Compute the contrastive distillation loss of Tian et al. (ICLR 2020), as RepDistiller does.

    Each side is scored against the other side's bank. With ``P = exp(<row, embedding> / T) / Z``, N samples in the
    memory, ``n = K / N`` and ``eps = 1e-7``, the loss of a side is

    ``-1/B sum_b [ log(P+ / (P+ + n + eps)) + sum_k log(n / (P-_k + n + eps)) ]``

    and the total is the sum of both sides. The first batch sets Z to N times its mean of ``exp(<row, embedding> / T)``,
    also with ``update=False``. Z is constant from then on. A batch with a mean that is not finite does not set it.

    If ``update`` is true, the bank rows ``index`` then move towards the embeddings; see :meth:`CRDMemory.update`. The
    gradient uses the banks from before the update. An empty batch gives 0 and changes nothing.

    Args:
        student_embedding: ``[B, D]``. The caller normalises the rows; this function does not.
        teacher_embedding: ``[B, D]``, likewise. Both receive gradients; the banks are constants.
        index: ``[B]`` int64, positions of the batch's samples in the training set. They select the positives and the
            rows to update.
        negatives: ``[B, K]`` int64 or int32 rows of the negatives, K at least 1. Any order and repeats are allowed.
            Ascending rows are several times faster on a CPU, because anchors then share reads of the same rows.
        memory: banks and normalisers, on the embeddings' device.
        update: whether to update the banks after scoring.

    Returns:
        0-dim; float32, or float64 where an embedding or the banks are float64.

    Raises:
        TypeError: for an argument of the wrong type or dtype.
        ValueError: for a wrong shape, device or value. On the CPU, rows of ``index`` and ``negatives`` are checked
            before anything is written. On a GPU a row out of range is a device-side assertion, because the check would
            cost a synchronisation.
    """
    if checked():
        if not isinstance(memory, CRDMemory):
            raise TypeError(f"memory must be a CRDMemory, got {type(memory).__name__}")
        memory.check_batch(student_embedding, teacher_embedding, index)
        memory.check_negatives(negatives, student_embedding.shape[0])
        check.check_flag("update", update)
    try:
        ops = kernels(student_embedding.device.type)
        if ops is None:
            return reference.crd_loss(student_embedding, teacher_embedding, index, negatives, memory, update=update)
        return _fused(ops, student_embedding, teacher_embedding, index, negatives, memory, update)
    except (RuntimeError, IndexError):
        memory.check_rows("index", index)
        memory.check_rows("negatives", negatives)
        raise


def _fused(
    ops: Any, student: Tensor, teacher: Tensor, index: Tensor, negatives: Tensor, memory: CRDMemory, update: bool
) -> Tensor:
    dtype = memory.compute_dtype(student, teacher)
    student, teacher = student.to(dtype), teacher.to(dtype)
    banks, z = (memory.student_bank, memory.teacher_bank), (memory.z_student, memory.z_teacher)
    batch = (index, negatives, *banks, *z, memory.temperature)
    constants = student.detach(), teacher.detach()
    dense = _dense(student.device.type, negatives.shape[0], negatives.shape[1], memory.num_samples)
    ops.contrastive_normalizers(*constants, *batch)
    mark_written(*z)
    if needs_function((student, teacher)):
        loss = _ContrastiveLoss.apply(ops, dense, *savable(student, teacher), *batch)
    else:
        loss, _, _ = ops.contrastive_forward(*constants, *batch, False, False, dense)
    if update:
        ops.contrastive_update(*constants, index, *banks, memory.momentum)
        mark_written(*banks)
    return loss


def _dense(device: str, batch: int, num_negatives: int, num_samples: int) -> bool:
    """Return whether to score all bank rows by a matrix product instead of gathering each sample's negatives.

    Both ways agree up to rounding. The choice depends on shapes and device alone. The product halves the cost of a
    (sample, row) pair, but it computes all pairs and rounds the batch up to a multiple of 16. For B = 64, K = 16,384,
    D = 128, float32, one thread:

    ======  ======  =======  ======
    N       gather  product  ratio
    ======  ======  =======  ======
    2,000   7.9 ms  3.7 ms   2.1
    5,000   13.8    6.3      2.2
    10,000  15.7    9.4      1.7
    16,000  18.3    13.5     1.4
    20,000  20.9    16.4     1.3
    24,000  20.8    19.1     1.1
    30,000  20.5    23.3     0.9
    ======  ======  =======  ======

    On a GPU the product, in plain float32, is limited by arithmetic and the gather by the second-level cache. By
    calculation for an H200, a pair of the product costs a sixth of a gathered row in float32 and a quarter in half
    precision, and the batch is rounded up to a multiple of 64. So the product is chosen up to N = 65,536 in the case
    above. Kernels gather all the same where the product has no code: float64, D above 128, K above 65,535.
    """
    if device == "cuda":
        return -(-batch // 64) * 64 * num_samples <= 4 * batch * num_negatives
    whole_batch = -(-batch // 16) * 16
    return device == "cpu" and 4 * whole_batch * num_samples <= 5 * batch * num_negatives


class _ContrastiveLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, ops: Any, dense: bool, student: Tensor, teacher: Tensor, *batch: Any) -> Tensor:  # type: ignore[override]
        wanted = ctx.needs_input_grad[2:4]
        loss, *grads = ops.contrastive_forward(student, teacher, *batch, *wanted, dense)
        ctx.save_for_backward(student, teacher, *grads)
        ctx.set_materialize_grads(False)
        return loss

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        nothing = (None,) * (len(ctx.needs_input_grad) - 4)
        if grad_loss is None:
            return None, None, None, None, *nothing
        return None, None, *first_derivatives(_backward, ctx, grad_loss), *nothing


def _backward(ctx: Any, grad_loss: Tensor, saved: Saved) -> list[Tensor | None]:
    """Return the gradients of student and teacher, None where none is wanted."""
    wanted = ctx.needs_input_grad[2:4]
    return [grad * grad_loss if want else None for grad, want in zip(saved[2:], wanted, strict=True)]


@register_fake("contrastive_normalizers")
def _(*arguments: Any) -> None:
    pass


@register_fake("contrastive_forward")
def _(student: Tensor, teacher: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    student_wanted, teacher_wanted = rest[7:9]
    grads = [
        x.new_empty((x.shape[0] if wanted else 0, x.shape[1]))
        for x, wanted in ((student, student_wanted), (teacher, teacher_wanted))
    ]
    return student.new_empty(()), grads[0], grads[1]
