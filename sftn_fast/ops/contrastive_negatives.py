"""Negatives for contrastive distillation: positions of samples of other classes, drawn where they are needed.

The raw op's schema, and how it draws, are in ``csrc/contrastive_negatives.h``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sftn_fast.ops import validation as check
from sftn_fast.ops._backend import kernels
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
    """Negatives of CRD (Tian et al., ICLR 2020): for each sample of a batch, K samples of other classes.

    Without replacement: each K-subset of the samples of other classes is as likely as any other, and the rows are
    independent. A row is in ascending order, in which a memory bank is read best. Where there are fewer than K samples
    of other classes they are drawn with replacement, as RepDistiller's data sets do.

    A row's negatives are a function of a key, which the call draws from the generator, of the row's number and of which
    samples are of other classes: the batch size, the number of threads and, given the key, the device do not matter.
    ``labels`` is read anew on each call. Nothing waits for a GPU; a CUDA graph that captures the call draws other
    negatives in every replay, if ``generator`` is registered with it, as the default one is.

    Args:
        index: ``[B]`` int64, the positions of the batch's samples in the data set.
        labels: ``[N]`` int64, the class of every sample of the data set; any numbers, in any order.
        num_negatives: ``K``, 0 or more.
        generator: on ``index``'s device; None for the default generator there, the only one that ``torch.compile``
            knows. Advances by one number.
        dtype: of the result; ``torch.int32`` halves its memory.

    Returns:
        ``[B, K]`` positions, ascending in each row.

    Raises:
        TypeError: for an argument of the wrong type or dtype.
        ValueError: for a wrong shape, device or value. That ``index`` is out of range, or that ``labels`` knows one
            class only, is found on the CPU; on a GPU, where finding it would cost a synchronisation, it is a
            device-side assertion.
    """
    check.check_indices("index", index, "[B]")
    check.check_indices("labels", labels, "[N]")
    check.check_same_device("labels", labels, "index", index)
    if labels.shape[0] > MAX_SAMPLES:
        raise ValueError(f"labels must hold at most {MAX_SAMPLES} samples, got {labels.shape[0]}")
    check.check_count("num_negatives", num_negatives)
    check.check_choice("dtype", dtype, DTYPES)
    if generator is not None:
        check.check_generator(generator, index.device)
    ops = kernels(index.device.type)
    key = reference.draw_key(index.device, generator)
    if ops is None:
        return reference.with_key(key, index, labels, num_negatives, dtype)
    return _fused(ops, key, index, labels, num_negatives, dtype)


def _fused(ops: Any, key: Tensor, index: Tensor, labels: Tensor, num_negatives: int, dtype: torch.dtype) -> Tensor:
    try:
        return ops.sample_negatives(key, index, labels, num_negatives, dtype == torch.int32)
    except RuntimeError:
        reference.check_positions(index, labels)
        raise


@register_fake("sample_negatives")
def _(key: Tensor, index: Tensor, labels: Tensor, num_negatives: int, as_int32: bool) -> Tensor:
    return index.new_empty((index.shape[0], num_negatives), dtype=torch.int32 if as_int32 else torch.int64)
