"""The memory of contrastive distillation: the student's and the teacher's embedding of every training sample."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from sftn_fast.ops import reference
from sftn_fast.ops import validation as check
from sftn_fast.ops._backend import kernels
from sftn_fast.ops._checking import checked
from sftn_fast.ops._dtype import accumulator
from sftn_fast.ops._library import register_fake


class CRDMemory(nn.Module):
    """Banks and normalisers of :func:`crd_loss`, for a training set of ``num_samples`` samples.

    ``student_bank`` and ``teacher_bank`` are ``[num_samples, dim]`` buffers, initialised uniformly in
    ``+-1 / sqrt(dim / 3)``, that follow the embeddings with ``momentum``. ``z_student`` and ``z_teacher`` are 0-dim
    buffers. ``z_student`` normalises the student's scores against the teacher's bank, ``z_teacher`` the teacher's
    scores against the student's bank. Both are NaN until the first batch sets them. All four are in the
    ``state_dict``.

    Banks in half precision halve memory and bandwidth; arithmetic stays in float32. The normalisers are float32, or
    float64 with float64 banks, even after ``half()`` or ``to(dtype)``.

    Source: Tian et al., Contrastive Representation Distillation (ICLR 2020), as in RepDistiller.

    Args:
        num_samples: size of the training set, N.
        dim: width of the embeddings, D.
        temperature: divisor of the scores; at least 1/70, or 1/600 for float64.
        momentum: weight of the old row in an update, from 0 to 1.
        dtype: dtype of the banks: float32, float16, bfloat16 or float64.

    Raises:
        TypeError: for an argument of the wrong type.
        ValueError: for a number out of range.
    """

    student_bank: Tensor
    teacher_bank: Tensor
    z_student: Tensor
    z_teacher: Tensor

    def __init__(
        self,
        num_samples: int,
        dim: int = 128,
        *,
        temperature: float = 0.07,
        momentum: float = 0.5,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        for name, value in (("num_samples", num_samples), ("dim", dim)):
            check.check_integer(name, value)
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        # exp(cosine / temperature), times the number of samples, must stay finite.
        check.check_positive("temperature", temperature, 1 / 600 if dtype is torch.float64 else 1 / 70)
        check.check_fraction("momentum", momentum)
        if dtype not in check.FLOATING:
            raise TypeError(f"dtype must be torch.float16, bfloat16, float32 or float64, got {dtype}")
        self.num_samples, self.dim = num_samples, dim
        self.temperature, self.momentum = float(temperature), float(momentum)
        bound = 1 / math.sqrt(dim / 3)
        for name in ("student_bank", "teacher_bank"):
            self.register_buffer(name, torch.empty(num_samples, dim, dtype=dtype).uniform_(-bound, bound))
        for name in ("z_student", "z_teacher"):
            self.register_buffer(name, torch.full((), math.nan, dtype=accumulator(self.student_bank)))

    def update(self, student_embedding: Tensor, teacher_embedding: Tensor, index: Tensor) -> None:
        """Move the rows ``index`` of both banks towards the embeddings, as :func:`crd_loss` does after scoring.

        ``row = normalise(momentum * row + (1 - momentum) * embedding)``. If ``index`` names a row several times, its
        last occurrence in the batch counts. A row that would not be finite keeps its old value. A row of zeros stays
        zero.

        With several processes, call ``crd_loss(..., update=False)`` on the local batch, then this method on the
        gathered batch, in the same order in every process. The banks of all processes then stay equal.

        Args:
            student_embedding: ``[B, D]``.
            teacher_embedding: ``[B, D]``.
            index: ``[B]`` int64, from 0 to N - 1.

        Raises:
            TypeError: for an argument of the wrong type or dtype.
            ValueError: for a wrong shape, device or value; for ``index`` as in :func:`crd_loss`.
        """
        if checked():
            self.check_batch(student_embedding, teacher_embedding, index)
        try:
            self._update(student_embedding.detach(), teacher_embedding.detach(), index)
        except (RuntimeError, IndexError):
            self.check_rows("index", index)
            raise

    @torch.no_grad()
    def _update(self, student: Tensor, teacher: Tensor, index: Tensor) -> None:
        ops = kernels(self.student_bank.device.type)
        if ops is None:
            reference.contrastive.update_banks(self, student, teacher, index)
            return
        dtype = self.compute_dtype(student, teacher)
        banks = self.student_bank, self.teacher_bank
        ops.contrastive_update(student.to(dtype), teacher.to(dtype), index, *banks, self.momentum)
        mark_written(*banks)

    def compute_dtype(self, *embeddings: Tensor) -> torch.dtype:
        """Return the dtype of arithmetic and loss: float64 if the banks or an embedding are float64, else float32."""
        return accumulator(self.student_bank, *embeddings)

    def check_batch(self, student_embedding: Any, teacher_embedding: Any, index: Any) -> None:
        """Raise unless both embeddings are ``[B, D]`` on the banks' device and the index is ``[B]``."""
        self._check_embedding("student_embedding", student_embedding)
        self._check_embedding("teacher_embedding", teacher_embedding)
        check.check_like("teacher_embedding", teacher_embedding, "student_embedding", student_embedding)
        batch = student_embedding.shape[0]
        check.check_indices("index", index, f"[B] = [{batch}]", size=batch)
        self._check_device("index", index)

    def check_negatives(self, negatives: Any, batch: int) -> None:
        """Raise unless the negatives are integers ``[B, K]``, K at least 1, on the banks' device."""
        check.check_tensor("negatives", negatives)
        if negatives.dtype not in (torch.int64, torch.int32):
            raise TypeError(f"negatives must be int64 or int32, got {negatives.dtype}")
        if negatives.dim() != 2 or negatives.shape[0] != batch or negatives.shape[1] == 0:
            raise ValueError(f"negatives must be [B, K] = [{batch}, K] with K at least 1, got {list(negatives.shape)}")
        self._check_device("negatives", negatives)

    def check_rows(self, name: str, rows: Tensor) -> None:
        """Raise if a row is out of range. Reading the rows synchronises with a GPU."""
        wrong = rows[(rows < 0) | (rows >= self.num_samples)]
        if wrong.numel():
            raise ValueError(f"{name} must hold rows from 0 to {self.num_samples - 1}, got {wrong[0].item()}")

    def _check_embedding(self, name: str, embedding: Any) -> None:
        check.check_floating(name, embedding)
        if embedding.dim() != 2 or embedding.shape[1] != self.dim:
            raise ValueError(f"{name} must be [B, D] with the memory's D = {self.dim}, got {list(embedding.shape)}")
        self._check_device(name, embedding)

    def _check_device(self, name: str, tensor: Tensor) -> None:
        if tensor.device != self.student_bank.device:
            raise ValueError(f"{name} must be on the memory's device, {self.student_bank.device}, got {tensor.device}")

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> CRDMemory:
        """Move and cast the banks. Only move the normalisers, because half precision could not hold them."""
        normalizers = {name: getattr(self, name) for name in ("z_student", "z_teacher")}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        dtype = accumulator(self.student_bank)
        for name, before in normalizers.items():
            after = getattr(self, name)
            setattr(self, name, after.to(dtype) if before.is_meta else before.to(after.device, dtype))
        return self

    def extra_repr(self) -> str:
        """Return the text that ``print`` shows."""
        dtype = str(self.student_bank.dtype).removeprefix("torch.")
        mebibytes = 2 * self.student_bank.numel() * self.student_bank.element_size() / 2**20
        return (
            f"num_samples={self.num_samples}, dim={self.dim}, temperature={self.temperature:g}, "
            f"momentum={self.momentum:g}, dtype={dtype}, {mebibytes:.1f} MiB"
        )


def mark_written(*tensors: Tensor) -> None:
    """Tell autograd that a raw op wrote to tensors, so that a graph that saved one raises in its backward pass."""
    if not torch.compiler.is_compiling():
        for tensor in tensors:
            if not tensor.is_inference():
                torch.autograd.graph.increment_version(tensor)


@register_fake("contrastive_update")
def _(*arguments: Any) -> None:
    pass
