"""CRD in float64, written as in the paper: the oracle for all backends."""

from __future__ import annotations

from dataclasses import dataclass

import torch

EPS = 1e-7


@dataclass
class Result:
    loss: torch.Tensor
    grads: list[torch.Tensor]  # the student's, the teacher's
    z: list[torch.Tensor]
    banks: list[torch.Tensor]  # after the update

    @property
    def tensors(self) -> list[torch.Tensor]:
        return [self.loss, *self.grads, *self.z, *self.banks]


def crd(student, teacher, index, negatives, memory, grad_output=1.0) -> Result:
    """Return everything that a call of crd_loss returns or changes, from the memory before the call."""
    leaves = [x.detach().double().requires_grad_() for x in (student, teacher)]
    banks = [bank.double() for bank in (memory.student_bank, memory.teacher_bank)]
    n = memory.num_samples
    rows = torch.cat([index[:, None], negatives.long()], 1)
    noise = negatives.shape[1] / n
    loss, normalizers = 0, []
    for v, bank, z in zip(leaves, banks[::-1], (memory.z_student, memory.z_teacher), strict=True):
        out = torch.exp(torch.einsum("bkd,bd->bk", bank[rows], v) / memory.temperature)
        z = z.double() if not z.isnan() else out.detach().mean() * n
        normalizers.append(z)
        p = out / z
        loss = loss - (p[:, 0] / (p[:, 0] + noise + EPS)).log().sum() / len(v)
        loss = loss - (noise / (p[:, 1:] + noise + EPS)).log().sum() / len(v)
    grads = torch.autograd.grad(loss, leaves, torch.tensor(grad_output, dtype=torch.float64))
    updated = [bank.clone() for bank in banks]
    for bank, old, v in zip(updated, banks, leaves, strict=True):
        for b, row in enumerate(index.tolist()):
            mixed = memory.momentum * old[row] + (1 - memory.momentum) * v[b].detach()
            bank[row] = mixed / mixed.norm()
    return Result(loss.detach(), list(grads), normalizers, updated)
