"""Negatives for contrastive distillation, in plain PyTorch. See :mod:`sftn_fast.ops.contrastive_negatives`.

It draws from the same stream of random numbers as the kernels, so the same key gives the same negatives everywhere.
The formulas are in ``csrc/contrastive_negatives.h``.
"""

from __future__ import annotations

import torch
from torch import Tensor

GOLDEN = 0x9E3779B97F4A7C15 - 2**64
MIX_1 = 0xBF58476D1CE4E5B9 - 2**64
MIX_2 = 0x94D049BB133111EB - 2**64


def sample_negatives(
    index: Tensor,
    labels: Tensor,
    num_negatives: int,
    *,
    generator: torch.Generator | None = None,
    dtype: torch.dtype = torch.int64,
) -> Tensor:
    """Do :func:`sftn_fast.ops.sample_negatives` in plain PyTorch. Waits for the device several times per row."""
    return with_key(draw_key(index.device, generator), index, labels, num_negatives, dtype)


def draw_key(device: torch.device, generator: torch.Generator | None) -> Tensor:
    """Draw the key of one call, ``[1]`` int64, on the device where it is used. Other keys give other negatives."""
    return torch.randint(2**63 - 1, (1,), generator=generator, device=device)


def with_key(key: Tensor, index: Tensor, labels: Tensor, num_negatives: int, dtype: torch.dtype) -> Tensor:
    """Return the negatives ``[B, K]`` of a key, as the raw op does."""
    negatives = torch.empty(len(index), num_negatives, dtype=dtype, device=index.device)
    if num_negatives == 0 or index.is_meta:  # which has no labels to read
        return negatives
    check_positions(index, labels)
    seeds = _random_words(key, 0, len(index))
    for row, own in enumerate(labels[index]):
        others = (labels != own).nonzero().squeeze(1)
        negatives[row] = others[_sorted_ranks(seeds[row], len(others), num_negatives)]
    return negatives


def check_positions(index: Tensor, labels: Tensor) -> None:
    """Raise if a position is out of range or all samples have one class. Reading them synchronises with a GPU."""
    wrong = index[(index < 0) | (index >= len(labels))]
    if wrong.numel():
        there = f"positions in labels, of which there are {len(labels)}"
        raise ValueError(f"index must hold {there}, got {wrong[0].item()}")
    if index.numel() and bool((labels == labels[0]).all()):
        raise ValueError(f"labels must hold at least two classes, got {labels[0].item()} alone")


def _sorted_ranks(seed: Tensor, candidates: int, count: int) -> Tensor:
    """Draw ``count`` numbers below ``candidates``, in order and distinct unless there are too few."""
    if count > candidates:
        return _draws(seed, 0, count, candidates).sort().values
    leave_out = 2 * count > candidates  # mark the smaller set: the numbers to take, or those to leave out
    wanted = candidates - count if leave_out else count
    marked = torch.zeros(candidates, dtype=torch.bool, device=seed.device)
    draws = 0
    if 16 * wanted >= candidates:
        marked, draws = _coins(seed, candidates, 256 * wanted // candidates - 1)
    while missing := wanted - int(marked.sum()):  # drawing no more than are missing can't overshoot
        marked[_draws(seed, draws, abs(missing), candidates)] = missing > 0
        draws += abs(missing)
    return (marked != leave_out).nonzero().squeeze(1)


def _coins(seed: Tensor, candidates: int, threshold: int) -> tuple[Tensor, int]:
    """Return bits that are set with probability ``threshold / 256``, and the number of random words used."""
    digits = _random_words(seed, 0, 8 * (words := -(-candidates // 64))).reshape(8, words)
    marked = torch.zeros_like(digits[0])
    for digit, random in enumerate(digits):
        marked = marked | random if threshold >> digit & 1 else marked & random
    bits = marked.unsqueeze(1) >> torch.arange(64, device=seed.device) & 1
    return bits.flatten()[:candidates].bool(), digits.numel()


def _draws(seed: Tensor, first: int, count: int, below: int) -> Tensor:
    """Draw uniform numbers below ``below`` < 2^31: the high 64 bits of random words times ``below``."""
    words = _random_words(seed, first, count)
    high, low = _shifted_right(words, 32), words & 0xFFFFFFFF
    return (high * below + (low * below >> 32)) >> 32


def _random_words(seed: Tensor, first: int, count: int) -> Tensor:
    """Return SplitMix64's outputs ``first`` to ``first + count - 1``. Products wrap around, as in C++."""
    z = seed + GOLDEN * torch.arange(first + 1, first + count + 1, device=seed.device)
    z = (z ^ _shifted_right(z, 30)) * MIX_1
    z = (z ^ _shifted_right(z, 27)) * MIX_2
    return z ^ _shifted_right(z, 31)


def _shifted_right(x: Tensor, bits: int) -> Tensor:
    """Shift right as if ``x`` were unsigned."""
    return (x >> bits) & (2 ** (64 - bits) - 1)
