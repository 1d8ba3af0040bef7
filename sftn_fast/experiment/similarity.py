"""Similarity of a student and its teacher, in predictions and features, on data that neither was trained on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from sftn_fast.data import Batch
from sftn_fast.engine import distributed
from sftn_fast.models import StagedNet

CALIBRATION_BINS = 15
CKA_BATCH = 256  # images whose similarities are compared at a time


@dataclass(frozen=True)
class Similarity:
    """Similarity of student and teacher over a data set."""

    agreement: float
    """Share of samples on which both predict the same class, in percent."""
    agreement5: float
    """Share of samples on which the teacher's class is among the student's top five, in percent."""
    kl: float
    """Mean over the samples of KL(teacher || student) at temperature 1, in nats."""
    cka: float | None
    """Linear centred kernel alignment of the pooled vectors, about 0 to 1; see :class:`CKA`."""
    calibration_error: float
    """Expected calibration error of the student in percent: 15 bins of equal width."""


@torch.no_grad()
def measure(student: StagedNet, teacher: StagedNet, batches: Iterable[Batch]) -> Similarity:
    """Compare two classifiers in evaluation mode over ``batches``; each rank passes its share."""
    student.eval()
    teacher.eval()
    sums = torch.zeros(4, dtype=torch.float64)  # agreement, agreement5, divergence, samples
    cka, calibration = CKA(), Calibration()
    for batch in batches:
        seen = student.forward_features(batch.images)
        taught = teacher.forward_features(batch.images)
        ours, theirs = seen.logits.double(), taught.logits.double()
        chosen = theirs.argmax(1)
        first_five = ours.topk(min(5, ours.shape[1]), dim=1).indices
        kl = F.kl_div(ours.log_softmax(1), theirs.log_softmax(1), reduction="sum", log_target=True)
        hits = ((ours.argmax(1) == chosen).sum(), (first_five == chosen[:, None]).sum())
        # Sums stay on the device; reading them once at the end is the only synchronisation.
        sums = sums.to(kl.device) + torch.stack([*(hit.double() for hit in hits), kl, torch.full_like(kl, len(ours))])
        for part in zip(seen.pooled.split(CKA_BATCH), taught.pooled.split(CKA_BATCH), strict=True):
            cka.add(*part)
        calibration.add(ours, batch.target)
    *totals, count = _over_ranks(sums).tolist()
    assert count, "no batches to compare on"
    agreement, agreement5, divergence = (total / count for total in totals)
    return Similarity(100 * agreement, 100 * agreement5, divergence, cka.value(), 100 * calibration.error())


def _over_ranks(sums: Tensor) -> Tensor:
    """Return the sum over all ranks, on the CPU: a rank without a batch knows no other device."""
    return distributed.all_sum(sums.cpu().clone())


class CKA:
    """Linear centred kernel alignment from minibatches (Kornblith et al., ICML 2019).

    Each of the three kernel similarities is an unbiased estimate (Song et al., 2012). They are averaged over the
    minibatches before the ratio is taken (Nguyen et al., ICLR 2021): the batch size changes the result only by noise.
    Minibatches of fewer than four samples are skipped, because the estimate is undefined.
    """

    def __init__(self) -> None:
        self._sums = torch.zeros(3, dtype=torch.float64)

    def add(self, a: Tensor, b: Tensor) -> None:
        """Add the features [n, Da] and [n, Db] of the same n samples."""
        if len(a) < 4:
            return
        one, other = (_gram(x.flatten(1).double()) for x in (a, b))
        found = torch.stack([_hsic(one, other), _hsic(one, one), _hsic(other, other)])
        self._sums = self._sums.to(found.device) + found

    def value(self) -> float | None:
        """Return the alignment so far, over all ranks; None if one network's features don't vary."""
        both, first, second = _over_ranks(self._sums).tolist()
        return both / (first * second) ** 0.5 if first > 0 and second > 0 else None


def _gram(x: Tensor) -> Tensor:
    return (x @ x.T).fill_diagonal_(0)


def _hsic(a: Tensor, b: Tensor) -> Tensor:
    """Return the unbiased Hilbert-Schmidt independence criterion of kernel matrices [n, n] with zero diagonals."""
    n, rows, other_rows = len(a), a.sum(1), b.sum(1)
    means = rows.sum() * other_rows.sum() / ((n - 1) * (n - 2)) - 2 * (rows * other_rows).sum() / (n - 2)
    return ((a * b).sum() + means) / (n * (n - 3))


class Calibration:
    """Expected calibration error: distance of confidence from accuracy, averaged over bins of confidence."""

    def __init__(self, bins: int = CALIBRATION_BINS) -> None:
        self.bins = bins
        # [bins, 3]: samples, of them right, their confidence
        self._sums = torch.zeros(bins, 3, dtype=torch.float64)

    def add(self, logits: Tensor, target: Tensor) -> None:
        """Add logits [N, C] and labels [N]."""
        confidence, chosen = logits.softmax(1).max(1)
        # NaN falls into the first bin and makes it, and the error, NaN.
        place = (confidence.nan_to_num() * self.bins).long().clamp(max=self.bins - 1)
        facts = torch.stack([torch.ones_like(confidence), (chosen == target).to(confidence), confidence], 1)
        # One-hot times facts instead of index_add_, which is not deterministic on a GPU.
        self._sums = self._sums.to(facts.device) + F.one_hot(place, self.bins).to(facts).T @ facts

    def error(self) -> float:
        """Return the mean over all samples, of all ranks, of |accuracy - confidence| of their bin, 0 to 1."""
        samples, right, confidence = _over_ranks(self._sums).T
        return ((right - confidence).abs().sum() / samples.sum()).item()
