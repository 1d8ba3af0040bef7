"""Negatives for contrastive distillation: random positions of samples of other classes, drawn on the device.

The raw op's schema and its way of drawing are in ``csrc/contrastive_negatives.h``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sftn_fast.ops import validation as check
from sftn_fast.ops._backend import kernels
from sftn_fast.ops._checking import checked
from sftn_fast.ops._library import register_fake
from sftn_fast.ops.reference import contrastive_negatives as reference

DTYPES = (torch.int64, torch.int32)
MAX_SAMPLES = 2**31 - 1


def sample_negatives(
    index: Tensor,
    labels: Tensor,
    num_negatives: int,
    *,
    generator: torch.Generator | None = None,
    dtype: torch.dtype = torch.int64,
) -> Tensor:
    """Sample negatives for CRD (Tian et al., ICLR 2020): K samples of other classes for each sample of a batch.

    Sampling is without replacement: every K-subset of the samples of other classes is equally likely, and rows are
    independent. The random words are SplitMix64's. For uniform words this is exact up to rounding, which makes a
    sample at most 1e-9 of its probability more likely than another. A row is in ascending order, the best order to
    read a memory bank. If fewer than K samples of other classes exist, sampling is with replacement, as in
    RepDistiller's data sets.

    The call draws one key from the generator. The negatives of a row depend on the key, the row's number and the
    samples of other classes. They do not depend on the batch size, the number of threads or, given the key, the
    device. Every call reads ``labels`` again. Nothing waits for a GPU. A CUDA graph that captured the call draws new
    negatives in every replay if ``generator`` is registered with the graph, as the default generator is.

    Args:
        index: ``[B]`` int64, positions of the batch's samples in the data set.
        labels: ``[N]`` int64, the class of every sample of the data set; any numbers in any order.
        num_negatives: ``K``, 0 or more.
        generator: a generator on the device of ``index``, or None for the default one, the only one that
            ``torch.compile`` supports. It advances by one number.
        dtype: dtype of the result; ``torch.int32`` halves its memory.

    Returns:
        ``[B, K]`` positions, ascending in each row.

    Raises:
        TypeError: for an argument of the wrong type or dtype.
        ValueError: for a wrong shape, device or value. The CPU also checks that ``index`` is in range and that
            ``labels`` holds at least two classes. On a GPU a violation is a device-side assertion, because the check
            would cost a synchronisation.
    """
    if checked():
        _check(index, labels, num_negatives, dtype, generator)
    ops = kernels(index.device.type)
    key = reference.draw_key(index.device, generator)
    if ops is None:
        return reference.with_key(key, index, labels, num_negatives, dtype)
    return _fused(ops, key, index, labels, num_negatives, dtype)


def _check(index: Any, labels: Any, num_negatives: Any, dtype: Any, generator: Any) -> None:
    check.check_indices("index", index, "[B]")
    check.check_indices("labels", labels, "[N]")
    check.check_same_device("labels", labels, "index", index)
    if labels.shape[0] > MAX_SAMPLES:
        raise ValueError(f"labels must hold at most {MAX_SAMPLES} samples, got {labels.shape[0]}")
    check.check_count("num_negatives", num_negatives)
    check.check_choice("dtype", dtype, DTYPES)
    if generator is not None:
        check.check_generator(generator, index.device)


def _fused(ops: Any, key: Tensor, index: Tensor, labels: Tensor, num_negatives: int, dtype: torch.dtype) -> Tensor:
    try:
        return ops.sample_negatives(key, index, labels, num_negatives, dtype == torch.int32)
    except RuntimeError:
        reference.check_positions(index, labels)
        raise


@register_fake("sample_negatives")
def _(key: Tensor, index: Tensor, labels: Tensor, num_negatives: int, as_int32: bool) -> Tensor:
    return index.new_empty((index.shape[0], num_negatives), dtype=torch.int32 if as_int32 else torch.int64)
