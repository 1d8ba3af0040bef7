"""What the kernels read and write: sectors of 32 bytes for each access of a warp, and launches for each call.

A GPU moves whole sectors. An access is coalesced if it touches no more of them than its bytes fill. The sizes are such
that rows and maps begin at sectors; LOOSE has the accesses that need more, and why.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from sftn_fast import ops
from sftn_fast.ops import _backend

from .build import Emulator

N, CHANNELS, SIDE, WIDTH, BRANCHES, SAMPLES = 8, 32, 8, 64, 3, 400

# Sectors of reads and of writes for each one that the bytes fill.
TIGHT = 1.01, 1.01  # a block's partial sums may straddle
LOOSE = {
    # values of channels last beside the parameters of their channels, of which a lane reads a pack's one by one from L1
    "adapted_backward_kernel": (2.1, 2.0),
    "adapted_sums_kernel": (1.8, 4.0),  # and sums of channels, a few for each block
    "adapted_moments_kernel": (1.2, 4.0),
    "pointwise_sum_kernel": (1.65, 1.0),
    "pointwise_gradient_kernel": (1.65, 1.0),
    "vid_finish_kernel": (2.5, 1.0),  # the partial sums of a channel
    "logits_divergence_forward_kernel": (1.03, 1.01),  # the partial sums of few blocks, three in a row
    # float32 for each value of a pack in half precision: two accesses, each to half of a lane's sector
    "attend_kernel": (1.0, 2.0),
    "dist_backward_kernel": (1.8, 1.0),
    "slopes_kernel": (1.5, 1.0),
    "vid_columns_kernel": (1.0, 2.0),
    "pool_kernel": (1.85, 1.0),  # windows overlap
    # a pair's results go to both sides of the diagonal
    "rkd_angles_kernel": (1.0, 2.5),
    "rkd_distances_kernel": (1.01, 1.5),
    "rkd_pair_sums_kernel": (2.1, 1.0),  # a field of each side
    # rows of 49 values straddle, and the first values of channels are a large part of few samples
    "adapted_hint small: adapted_moments_kernel": (1.3, 4.0),
    "at small: attend_kernel": (1.05, 2.0),
    "at small: compare_rows_kernel": (1.2, 1.2),
    "at small: slopes_kernel": (1.7, 1.05),
}


class Inputs:
    """Random inputs of one dtype, the same in every test."""

    def __init__(self, dtype: torch.dtype, channels_last: bool) -> None:
        self.dtype = dtype
        self.format = torch.channels_last if channels_last else torch.contiguous_format
        self.generator = torch.Generator().manual_seed(0)

    def normal(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        values = torch.randn(*shape, generator=self.generator).to(dtype or self.dtype)
        return (values.contiguous(memory_format=self.format) if len(shape) == 4 else values).requires_grad_()

    def maps(self, *, channels: int = CHANNELS, side: int = SIDE) -> Tensor:
        return self.normal(N, channels, side, side)

    def classes(self) -> Tensor:
        return torch.arange(N) % WIDTH

    def embedding(self) -> Tensor:
        return torch.nn.functional.normalize(self.normal(N, WIDTH, dtype=torch.float32)).detach().requires_grad_()

    def bank(self) -> ops.CRDMemory:
        memory = ops.CRDMemory(SAMPLES, WIDTH, dtype=self.dtype)
        memory.z_student.fill_(500.0)
        memory.z_teacher.fill_(300.0)
        return memory

    def negatives(self, count: int) -> Tensor:
        return torch.randint(SAMPLES, (N, count), generator=self.generator)

    def crd(self, negatives: int = 32) -> Tensor:
        index, embeddings = torch.arange(N), (self.embedding(), self.embedding())
        return ops.crd_loss(*embeddings, index, self.negatives(negatives), self.bank())

    def standardized(self) -> Tensor:
        student, teacher = self.normal(N, WIDTH), self.normal(N, WIDTH).detach()
        return ops.kd_ce_loss(student, teacher, self.classes(), standardize=True).total

    def wkd(self) -> Tensor:
        cost = torch.rand(WIDTH, WIDTH, generator=self.generator)
        return ops.wkd_loss(self.normal(N, WIDTH), self.normal(N, WIDTH), self.classes(), cost, iterations=2)

    def adapted_hint(self, side: int = SIDE) -> Tensor:
        ones = torch.ones(CHANNELS, requires_grad=True), torch.zeros(CHANNELS, requires_grad=True)
        running = torch.zeros(CHANNELS), torch.ones(CHANNELS)
        return ops.adapted_hint_loss(self.maps(side=side), self.maps(side=side), *ones, *running)

    def vid(self) -> Tensor:
        return ops.vid_loss(self.maps(), torch.zeros(CHANNELS, requires_grad=True), self.maps())


CALLS: dict[str, tuple[Callable[[Inputs], Any], int]] = {
    # The last number is that of launches, forward and backward together.
    "kd": (lambda x: ops.kd_loss(x.normal(N, WIDTH), x.normal(N, WIDTH)), 2),
    "kd_ce": (lambda x: ops.kd_ce_loss(x.normal(N, WIDTH), x.normal(N, WIDTH), x.classes()).total, 2),
    "kd_ce long rows": (lambda x: ops.kd_ce_loss(x.normal(N, 2048), x.normal(N, 2048), x.classes()).total, 2),
    "sftn": (lambda x: ops.sftn_loss(x.normal(N, WIDTH), x.normal(BRANCHES, N, WIDTH), x.classes()).total, 2),
    "dkd": (lambda x: ops.dkd_loss(x.normal(N, WIDTH), x.normal(N, WIDTH).detach(), x.classes()).total, 2),
    "rld long rows": (lambda x: ops.rld_loss(x.normal(N, 2112), x.normal(N, 2112).detach(), x.classes()), 2),
    "kd_ce standardized": (Inputs.standardized, 2),
    "dist": (lambda x: ops.dist_loss(x.normal(N, WIDTH), x.normal(N, WIDTH)).total, 4),
    "dist long rows": (lambda x: ops.dist_loss(x.normal(N, 2048), x.normal(N, 2048)).total, 4),
    "wkd": (Inputs.wkd, 12),  # two iterations
    "crd": (Inputs.crd, 4),
    "crd of every row": (lambda x: x.crd(negatives=2 * SAMPLES), 5),
    "negatives": (lambda x: ops.sample_negatives(torch.arange(2), torch.arange(64) % 2, 8), 1),
    "rkd": (lambda x: ops.rkd_loss(x.normal(32, WIDTH), x.normal(32, WIDTH)).total, 5),
    "sp": (lambda x: ops.sp_loss(x.normal(32, WIDTH), x.normal(32, WIDTH)), 3),
    "pkt": (lambda x: ops.pkt_loss(x.normal(32, WIDTH), x.normal(32, WIDTH)), 3),
    "hint": (lambda x: ops.hint_loss(x.maps(), x.maps()), 2),
    "adapted_hint": (Inputs.adapted_hint, 3),
    "at": (lambda x: ops.at_loss(x.maps(), x.maps()), 3),
    "at other sizes": (lambda x: ops.at_loss(x.maps(side=2 * SIDE), x.maps(channels=2 * CHANNELS)), 5),
    "vid": (Inputs.vid, 3),
    "ab": (lambda x: ops.ab_loss(x.maps(), x.maps().detach()), 2),
    "ft": (lambda x: ops.ft_loss(x.maps(), x.maps()), 3),
    "ft paper": (lambda x: ops.ft_loss(x.maps(), x.maps(), variant="paper"), 2),
    # planes of 7 x 7 pixels are no whole number of packs, 8 of them are
    "adapted_hint small": (lambda x: x.adapted_hint(side=7), 3),
    "at small": (lambda x: ops.at_loss(x.maps(side=7), x.maps(side=7)), 3),
    "oh": (lambda x: ops.oh_loss(x.maps(), x.maps().detach(), torch.full((CHANNELS,), -0.5)), 2),
}
ON_MAPS = ("hint", "adapted_hint", "at", "vid", "ab", "oh")


def counted_launches(
    emulator: Emulator, emulated_ops: Any, call: str, dtype: torch.dtype, channels_last: bool
) -> list[dict[str, Any]]:
    """Return the launches of a call, forward and backward."""
    emulator.reset()
    emulator.count_accesses(True)
    with ops.backend("fused"), _backend._use_namespace("cpu", emulated_ops):
        result = CALLS[call][0](Inputs(dtype, channels_last))
        if result.requires_grad:
            result.backward()
    return emulator.counted_launches()


@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_accesses_are_coalesced_and_launches_few(
    emulator: Emulator, emulated_ops: Any, dtype: torch.dtype, channels_last: bool
) -> None:
    calls = {name: CALLS[name] for name in CALLS if not channels_last or name in ON_MAPS}
    names, wrong, launches = emulator.kernel_names(), [], {}
    for call in calls:
        counted = counted_launches(emulator, emulated_ops, call, dtype, channels_last)
        launches[call] = len(counted)
        assert emulator.memsets() == 0, call
        sums: dict[tuple[str, bool], Counter[str]] = defaultdict(Counter)
        for launch in counted:
            for site in launch["sites"]:
                key = names[launch["kernel"]].partition("<")[0].rpartition("::")[2], site["write"]
                sums[key].update({field: site[field] for field in ("requests", "bytes", "sectors", "fewest")})
        for (kernel, write), count in sums.items():
            allowed = LOOSE.get(f"{call}: {kernel}", LOOSE.get(kernel, TIGHT))[write]
            if count["sectors"] > allowed * count["fewest"]:
                wrong.append(f"{call}: {kernel} {'writes' if write else 'reads'} {dict(count)}, allowed {allowed}")
    assert not wrong, "\n".join(wrong)
    assert launches == {call: expected for call, (_, expected) in calls.items()}
