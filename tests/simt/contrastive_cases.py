"""Cases of the raw contrastive ops on the emulated device, and their float64 oracle."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

EPS = 1e-7
TEMPERATURE, MOMENTUM = 0.07, 0.3


@dataclass(frozen=True)
class Case:
    """One batch: normalisers, loss and gradients, update. ``offset`` elements before banks and negatives spoil
    alignment; ``repeats`` names samples of the batch several times."""

    samples: int = 30
    batch: int = 3
    negatives: int = 9
    dim: int = 8
    dtype: torch.dtype = torch.float32
    bank_dtype: torch.dtype = torch.float32
    wide: bool = True
    offset: int = 0
    pad: int = 0
    repeats: bool = False
    wanted: tuple[bool, bool] = (True, True)
    z_known: bool = False
    dense: bool = False

    def __str__(self) -> str:
        default = Case()
        named = {k: v for k, v in vars(self).items() if v != getattr(default, k)}
        return ",".join(f"{k}={str(v).removeprefix('torch.')}" for k, v in named.items()) or "default"

    @property
    def double_bank(self) -> bool:
        return self.bank_dtype == torch.float64

    def placed(self, values: Tensor, dtype: torch.dtype, pad: int = 0) -> Tensor:
        """Place values in a larger allocation: `offset` elements before them, `pad` after each row."""
        rows, columns = values.shape
        flat = torch.zeros(self.offset + rows * (columns + pad), dtype=dtype)
        return flat[self.offset :].view(rows, columns + pad)[:, :columns].copy_(values)


def normalized(generator: torch.Generator, rows: int, columns: int) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(rows, columns, generator=generator, dtype=torch.float64))


def oracle(
    case: Case, embeddings: list[Tensor], banks: list[Tensor], z: list[Tensor], rows: Tensor
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Compute loss and gradients by autograd, and the normalisers, in float64 from the kernels' inputs."""
    leaves = [x.detach().double().requires_grad_() for x in embeddings]
    noise = case.negatives / case.samples
    loss, normalizers = torch.zeros((), dtype=torch.float64), []
    for v, bank, known in zip(leaves, banks[::-1], z, strict=True):
        scores = torch.einsum("bkd,bd->bk", bank.double()[rows], v) / TEMPERATURE
        normalizer = scores.exp().mean().detach() * case.samples if known.isnan() else known.double()
        logits = scores - (normalizer * (noise + EPS)).log()
        signs = torch.ones(1 + case.negatives, dtype=torch.float64)
        signs[0] = -1
        loss = loss + torch.nn.functional.softplus(logits * signs).sum() / case.batch
        loss = loss + case.negatives * math.log1p(EPS / noise)
        normalizers.append(normalizer)
    return loss.detach(), list(torch.autograd.grad(loss, leaves)), normalizers


def updated(case: Case, bank: Tensor, embedding: Tensor, index: Tensor) -> Tensor:
    result = bank.double().clone()
    for b, row in enumerate(index.tolist()):
        mixed = MOMENTUM * bank[row].double() + (1 - MOMENTUM) * embedding[b].double()
        result[row] = mixed / mixed.norm().clamp(min=1e-30)
    return result


def run_case(case: Case) -> None:
    """Compare the emulated kernels with the oracle. AssertionError where they differ."""
    ops = torch.ops.sftn_fast_emulated
    generator = torch.Generator().manual_seed(case.samples * 1000 + case.dim)
    embeddings = [normalized(generator, case.batch, case.dim).to(case.dtype) for _ in range(2)]
    banks = [case.placed(normalized(generator, case.samples, case.dim), case.bank_dtype) for _ in range(2)]
    index = torch.randint(case.samples, (case.batch,), generator=generator)
    if case.repeats:
        index[1::2] = index[0]
    negatives = torch.randint(case.samples, (case.batch, case.negatives), generator=generator)
    negatives = case.placed(negatives, torch.int64 if case.wide else torch.int32, case.pad)
    z_dtype = torch.float64 if case.double_bank else torch.float32
    z = [torch.tensor(40.0 + side if case.z_known else math.nan, dtype=z_dtype) for side in range(2)]
    rows = torch.cat([index[:, None], negatives.long()], 1)
    loss, grads, normalizers = oracle(case, embeddings, banks, z, rows)
    expected_banks = [updated(case, bank, v, index) for bank, v in zip(banks, embeddings, strict=True)]

    batch = (*embeddings, index, negatives, *banks, *z, TEMPERATURE)
    ops.contrastive_normalizers(*batch)
    actual_loss, *actual_grads = ops.contrastive_forward(*batch, *case.wanted, case.dense)
    ops.contrastive_update(*embeddings, index, *banks, MOMENTUM)

    exact = 1e-11 if case.double_bank else 3e-6
    assert actual_loss.dtype == case.dtype
    torch.testing.assert_close(actual_loss.double(), loss, rtol=exact, atol=0)
    torch.testing.assert_close(torch.stack(z).double(), torch.stack(normalizers), rtol=exact, atol=0)
    for grad, right, wanted in zip(actual_grads, grads, case.wanted, strict=True):
        if wanted:
            bound = 3 * exact * max(float(right.abs().max()), 1.0)
            torch.testing.assert_close(grad.double(), right, rtol=0, atol=bound)
        else:
            assert grad.shape == (0, case.dim)
    stored = {torch.float16: 5e-4, torch.bfloat16: 4e-3}.get(case.bank_dtype, exact)
    for bank, right in zip(banks, expected_banks, strict=True):
        torch.testing.assert_close(bank.double(), right, rtol=0, atol=stored)


HALF, BRAIN, SINGLE, DOUBLE = torch.float16, torch.bfloat16, torch.float32, torch.float64

# Each line differs from the default in what it tests.
CASES = [
    *(Case(bank_dtype=dtype) for dtype in (SINGLE, HALF, BRAIN)),
    *(Case(dtype=DOUBLE, bank_dtype=dtype) for dtype in (SINGLE, HALF, BRAIN, DOUBLE)),
    *(Case(dim=dim, batch=2) for dim in (1, 3, 64, 127, 128, 129, 256, 260, 515, 1024)),
    *(Case(dim=dim, batch=2, bank_dtype=dtype) for dim in (7, 128, 300) for dtype in (HALF, BRAIN)),
    *(Case(dim=dim, batch=1, dtype=DOUBLE, bank_dtype=DOUBLE) for dim in (128, 200, 1000)),
    *(Case(negatives=negatives) for negatives in (1, 7, 8, 31, 32, 33)),
    *(Case(negatives=negatives, batch=1) for negatives in (255, 257, 600)),
    *(Case(batch=2, negatives=40, dim=dim) for dim in (130, 500, 700)),
    *(Case(offset=1, dim=128, bank_dtype=dtype) for dtype in (SINGLE, HALF, BRAIN)),
    Case(offset=1, dim=12, dtype=DOUBLE, bank_dtype=DOUBLE),
    Case(offset=4, dim=12, pad=3),
    Case(wide=False, pad=5),
    Case(wide=False, offset=1, negatives=70),
    Case(batch=1, samples=1, negatives=1),
    Case(batch=40, negatives=3),
    Case(batch=45, samples=20, repeats=True),
    Case(repeats=True, batch=5, bank_dtype=HALF),
    *(Case(wanted=wanted, negatives=300, batch=1) for wanted in ((True, False), (False, True), (False, False))),
    Case(z_known=True),
    Case(z_known=True, dtype=DOUBLE, bank_dtype=DOUBLE),
    # every row of the banks: tiles of 64 rows, 64 anchors in a block, 16 in a warp, columns in chunks of 4
    *(Case(dense=True, bank_dtype=dtype) for dtype in (SINGLE, HALF, BRAIN)),
    *(Case(dense=True, samples=samples, negatives=41) for samples in (1, 63, 64, 65, 400)),
    *(Case(dense=True, batch=batch, negatives=15) for batch in (1, 16, 17, 65)),
    *(Case(dense=True, dim=dim, batch=2, samples=70) for dim in (1, 5, 127, 128)),
    *(Case(dense=True, dim=dim, batch=2, bank_dtype=dtype) for dim in (7, 128) for dtype in (HALF, BRAIN)),
    *(Case(dense=True, offset=1, dim=128, bank_dtype=dtype) for dtype in (SINGLE, HALF)),
    *(Case(dense=True, wanted=wanted) for wanted in ((True, False), (False, True), (False, False))),
    Case(dense=True, wide=False, pad=5, offset=1),
    Case(dense=True, samples=3, negatives=90, repeats=True, batch=3),
    Case(dense=True, dim=129),  # and what it leaves to the other way
    Case(dense=True, dtype=DOUBLE),
]
