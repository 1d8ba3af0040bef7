"""Every module of ``sftn_fast.nn`` and every class of ``compat.repdistiller`` at a small size, as one table.

Properties of all of them are tested once, over this table; the functions of ``sftn_fast.ops`` are in `ops/every_op.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from sftn_fast import nn as losses
from sftn_fast.compat import repdistiller

N, CLASSES, SAMPLES = 6, 7, 30
EMBEDDING = {"s_dim": 5, "t_dim": 8, "feat_dim": 4, "n_data": SAMPLES, "nce_k": 3, "nce_t": 0.07, "nce_m": 0.5}


@dataclass(frozen=True)
class Loss:
    """Constructor and arguments of a module. The first argument is the student's, and requires a gradient."""

    build: Callable[[], nn.Module]
    inputs: Callable[[Any], tuple[Any, ...]]  # called with a function that draws values of a shape

    def arguments(self, dtype: torch.dtype = torch.float32) -> tuple[Any, ...]:
        """Return the arguments, with the same values in each call, rounded to a dtype."""
        generator = torch.Generator().manual_seed(0)
        return self.inputs(lambda *shape: torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype))


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield the tensors of a nested result or argument."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors_in(item)


def changed(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Return the same nested value with changed tensors."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, (list, tuple)):
        return type(value)([changed(item, change) for item in value])
    return value


def total(result: Any) -> Tensor:
    """Return the value that carries the gradient: the total of several terms, or the sum of a list."""
    if isinstance(result, Tensor):
        return result.sum()
    if isinstance(result, list):
        return torch.stack(list(result)).sum()
    return result.total


def _maps(draw: Any) -> tuple[Tensor, Tensor]:
    return draw(N, 4, 4, 4), draw(N, 4, 4, 4)


def _other_maps(draw: Any) -> tuple[Tensor, Tensor]:
    return draw(N, 4, 8, 8), draw(N, 5, 4, 4)


def _rows(draw: Any) -> tuple[Tensor, Tensor]:
    return draw(N, 5), draw(N, 8)


def _equal_rows(draw: Any) -> tuple[Tensor, Tensor]:
    return draw(N, 5), draw(N, 5)


def _logits(draw: Any) -> tuple[Tensor, Tensor]:
    return 2 * draw(N, CLASSES), 2 * draw(N, CLASSES)


def _target() -> Tensor:
    return torch.arange(N) % CLASSES


def _lists(draw: Any) -> tuple[list[Tensor], list[Tensor]]:
    return [draw(N, 4, 4, 4) for _ in range(3)], [draw(N, 4, 4, 4) for _ in range(3)]


def _contrast(draw: Any) -> tuple[Tensor, ...]:
    index = torch.arange(N)
    return *_rows(draw), index, (index[:, None] + torch.tensor([[7, 9, 13]])) % SAMPLES


def _contrast_with_positive(draw: Any) -> tuple[Tensor, ...]:
    student, teacher, index, negatives = _contrast(draw)
    return student, teacher, index, torch.cat([index[:, None], negatives], 1)


def _with_target(draw: Any) -> tuple[Any, ...]:
    return *_logits(draw), _target()


MODULES = {
    "KDLoss": Loss(losses.KDLoss, _logits),
    "KDCELoss": Loss(losses.KDCELoss, _with_target),
    "SFTNLoss": Loss(losses.SFTNLoss, lambda draw: (_logits(draw)[0], list(_logits(draw)), _target())),
    "DivergenceLoss": Loss(losses.DivergenceLoss, _logits),
    "DivergenceLoss jsd": Loss(lambda: losses.DivergenceLoss(kind="jsd"), _logits),
    "TTMLoss": Loss(losses.TTMLoss, _logits),
    "NKDLoss": Loss(losses.NKDLoss, _with_target),
    "DKDLoss": Loss(losses.DKDLoss, _with_target),
    "RLDLoss": Loss(losses.RLDLoss, _with_target),
    "DISTLoss": Loss(losses.DISTLoss, _logits),
    "WKDLoss": Loss(lambda: losses.WKDLoss(1 - torch.eye(CLASSES)), _with_target),
    "RKDLoss": Loss(losses.RKDLoss, _rows),
    "RKDDistanceLoss": Loss(losses.RKDDistanceLoss, _rows),
    "RKDAngleLoss": Loss(losses.RKDAngleLoss, _rows),
    "SPLoss": Loss(losses.SPLoss, _other_maps),
    "PKTLoss": Loss(losses.PKTLoss, _rows),
    "HintLoss": Loss(losses.HintLoss, _maps),
    "ATLoss": Loss(losses.ATLoss, _other_maps),
    "ATLoss p=1": Loss(lambda: losses.ATLoss(p=1), _other_maps),
    "FTLoss": Loss(losses.FTLoss, _maps),
    "FTLoss paper": Loss(lambda: losses.FTLoss(variant="paper"), _maps),
    "ABLoss": Loss(losses.ABLoss, _maps),
    "OHLoss": Loss(lambda: losses.OHLoss(torch.tensor([-0.5, -0.2, -1.0, 0.0])), _maps),
    "VIDLoss": Loss(lambda: losses.VIDLoss(4, 5), _other_maps),
    "AdaptedHint": Loss(lambda: losses.AdaptedHint((4, 8, 8), (5, 4, 4)), _other_maps),
    "AdaptedHint, synchronised": Loss(
        lambda: with_norm_of_another_kind(losses.AdaptedHint((4, 8, 8), (5, 4, 4))), _other_maps
    ),
    "CRDLoss": Loss(lambda: losses.CRDLoss(5, 8, SAMPLES, dim=4), _contrast),
    "CorrelationLoss": Loss(losses.CorrelationLoss, _equal_rows),
    "FSPLoss": Loss(losses.FSPLoss, lambda draw: (_other_maps(draw), _other_maps(draw))),
    "NSTLoss": Loss(losses.NSTLoss, _other_maps),
    "KDSVDLoss": Loss(losses.KDSVDLoss, _lists),
    "Embed": Loss(lambda: losses.Embed(5, 4), lambda draw: _rows(draw)[:1]),
}

COMPAT = {
    "DistillKL": Loss(lambda: repdistiller.DistillKL(4.0), _logits),
    "HintLoss": Loss(repdistiller.HintLoss, _maps),
    "Attention": Loss(repdistiller.Attention, _lists),
    "Similarity": Loss(repdistiller.Similarity, _lists),
    "VIDLoss": Loss(lambda: repdistiller.VIDLoss(4, 5, 5), _other_maps),
    "RKDLoss": Loss(repdistiller.RKDLoss, _rows),
    "PKT": Loss(repdistiller.PKT, _rows),
    "ABLoss": Loss(lambda: repdistiller.ABLoss(3), _lists),
    "FactorTransfer": Loss(repdistiller.FactorTransfer, _maps),
    "FactorTransfer, other powers": Loss(lambda: repdistiller.FactorTransfer(2, 2), _other_maps),
    "CRDLoss": Loss(lambda: repdistiller.CRDLoss(SimpleNamespace(**EMBEDDING)), _contrast_with_positive),
    "NSTLoss": Loss(repdistiller.NSTLoss, _lists),
    "Correlation": Loss(repdistiller.Correlation, _equal_rows),
    "FSP": Loss(lambda: repdistiller.FSP(3 * [(N, 4, 4, 4)], 3 * [(N, 4, 4, 4)]), _lists),
    "KDSVD": Loss(repdistiller.KDSVD, _lists),
}

EVERY = {f"nn.{name}": loss for name, loss in MODULES.items()}
EVERY |= {f"compat.{name}": loss for name, loss in COMPAT.items()}


def with_norm_of_another_kind(hint: losses.AdaptedHint) -> losses.AdaptedHint:
    """Give ``hint`` another class of BatchNorm, so that it is called, like a synchronised one."""

    class Norm(nn.BatchNorm2d):
        pass

    hint.bn = Norm(hint.bn.num_features)
    return hint
