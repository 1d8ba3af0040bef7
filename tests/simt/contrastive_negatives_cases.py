"""Cases of the raw op of negatives on the emulated device, and an oracle in Python's integers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

MASK = 2**64 - 1


@dataclass(frozen=True)
class Case:
    """One call. ``share`` of the samples are of the first class, the others evenly of the rest."""

    samples: int = 100
    classes: int = 4
    negatives: int = 20
    rows: int = 3
    share: float = 0.25
    in_order: bool = False
    as_int32: bool = False

    def __str__(self) -> str:
        default = Case()
        return ",".join(f"{k}={v}" for k, v in vars(self).items() if v != getattr(default, k)) or "default"

    def inputs(self) -> tuple[Tensor, Tensor, Tensor]:
        """key [1], index [B], labels [N]: gaps between them, negative ones, and all that int64 has."""
        generator = torch.Generator().manual_seed(self.samples)
        names = torch.tensor([-(2**63), 2**63 - 1, 0, *range(-7, 7 * self.classes, 7)])[: self.classes]
        first = torch.rand(self.samples, generator=generator) < self.share
        labels = names[torch.randint(1, self.classes, (self.samples,), generator=generator).masked_fill(first, 0)]
        labels[-1], labels[0] = names[0], names[1]  # two classes at least
        index = torch.randint(self.samples, (self.rows,), generator=generator)
        index[0] = self.samples - 1
        key = torch.randint(-(2**62), 2**62, (1,), generator=generator)
        return key, index, labels.sort().values if self.in_order else labels


def random_word(seed: int, counter: int) -> int:
    """Compute SplitMix64 with Python's integers."""
    z = (seed + 0x9E3779B97F4A7C15 * (counter + 1)) & MASK
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & MASK
    z = (z ^ z >> 27) * 0x94D049BB133111EB & MASK
    return z ^ z >> 31


def coins(seed: int, below: int, count: int) -> set[int]:
    """Toss each rank's coin by itself: compare the fraction of its eight bits with a probability slightly too small."""
    words = -(-below // 64)
    digits = [[random_word(seed, i * words + w) for w in range(words)] for i in range(8)]
    fractions = (sum((digits[i][x // 64] >> x % 64 & 1) << i for i in range(8)) for x in range(below))
    return {x for x, fraction in enumerate(fractions) if 255 - fraction < 256 * count // below - 1}


def marked(seed: int, below: int, count: int) -> set[int]:
    """Toss coins if many are wanted, then draw one by one until the number of marks is right."""
    tossed = 16 * count >= below
    found = coins(seed, below, count) if tossed else set()
    counter = 8 * -(-below // 64) if tossed else 0
    change = found.add if len(found) < count else found.discard
    while len(found) != count:
        change(random_word(seed, counter) * below >> 64)
        counter += 1
    return found


def oracle(key: Tensor, index: Tensor, labels: Tensor, count: int) -> Tensor:
    """Compute the expected result, row by row."""
    rows = []
    for row, position in enumerate(index.tolist()):
        others = (labels != labels[position]).nonzero().squeeze(1).tolist()
        seed, size = random_word(key.item() & MASK, row), len(others)
        if count > size:
            ranks = [random_word(seed, j) * size >> 64 for j in range(count)]
        elif 2 * count > size:
            ranks = set(range(size)) - marked(seed, size, size - count)
        else:
            ranks = marked(seed, size, count)
        rows.append([others[rank] for rank in sorted(ranks)])
    return torch.tensor(rows, dtype=torch.int64).reshape(len(rows), count)


def run_case(case: Case) -> None:
    """Compare the emulated kernel with the oracle, number by number."""
    key, index, labels = case.inputs()
    ours = torch.ops.sftn_fast_emulated.sample_negatives(key, index, labels, case.negatives, case.as_int32)
    assert ours.dtype == (torch.int32 if case.as_int32 else torch.int64)
    assert torch.equal(ours.long(), oracle(key, index, labels, case.negatives))


# Each line differs from the default in what it is there for.
CASES = [
    *(Case(negatives=negatives) for negatives in (1, 36, 38, 39, 72)),  # of some 75: both ways to draw, all of them
    *(Case(negatives=negatives, in_order=True) for negatives in (20, 60)),
    Case(negatives=500, as_int32=True),
    Case(samples=2, classes=2, negatives=1, rows=4),
    Case(samples=2, classes=2, negatives=3),
    *(Case(samples=samples, classes=2, negatives=16) for samples in (31, 32, 33, 63, 64, 65, 1023, 1025)),
    Case(samples=1500, share=0.99, negatives=5),
    Case(samples=1500, share=0.01, negatives=900, as_int32=True),
    Case(samples=8700, negatives=1000, rows=2, as_int32=True),
    Case(samples=2200, classes=500, negatives=300, rows=2),
    Case(rows=7),
]
# Data sets that are drawn in several launches: slower, for the backends' own tests.
LARGE_CASES = [
    Case(samples=131_073, negatives=60_000, rows=1, in_order=True),
    Case(samples=131_100, negatives=100_000, rows=1, as_int32=True),
    Case(samples=135_000, classes=2, negatives=300, rows=2, share=0.999, as_int32=True),
    Case(samples=131_500, classes=90, negatives=2, rows=66, as_int32=True),
    Case(samples=270_001, negatives=300, rows=3, share=0.02),
    Case(samples=270_001, negatives=300, rows=3, in_order=True, as_int32=True),
    Case(samples=9_000, classes=2, negatives=9_500, rows=2, share=0.05),
]
