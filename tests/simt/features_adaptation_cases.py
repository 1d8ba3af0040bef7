"""Cases of the raw ops of the adapted hint loss on the emulated device, and their float64 oracle."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

HALF, BRAIN, SINGLE, DOUBLE = torch.float16, torch.bfloat16, torch.float32, torch.float64


@dataclass(frozen=True)
class Case:
    """One call. ``offset`` elements stand before each map's first one, and spoil its alignment."""

    shape: tuple[int, int, int, int] = (3, 5, 4, 4)
    dtype: torch.dtype = SINGLE
    channels_last: bool = False
    training: bool = True
    affine: bool = True
    offset: int = 0
    mean: float = 0.0
    outlier: bool = False

    def __str__(self) -> str:
        default = Case()
        named = {k: v for k, v in vars(self).items() if k == "shape" or v != getattr(default, k)}
        values = {k: "x".join(map(str, v)) if k == "shape" else str(v) for k, v in named.items()}
        return ",".join(f"{k}={v.removeprefix('torch.')}" for k, v in values.items())

    def map(self, generator: torch.Generator, mean: float) -> Tensor:
        """Make a dense map in the case's layout, inside a larger allocation if the case has an offset."""
        n, c, h, w = self.shape
        values = torch.randn(self.shape, generator=generator, dtype=DOUBLE) + mean
        flat = torch.zeros(self.offset + values.numel(), dtype=self.dtype)[self.offset :]
        view = flat.view(n, h, w, c).permute(0, 3, 1, 2) if self.channels_last else flat.view(self.shape)
        return view.copy_(values)

    def inputs(self) -> list[Tensor | None]:
        """features, teacher, weight, bias, running mean and variance, as the raw op takes them."""
        generator = torch.Generator().manual_seed(sum(self.shape))
        features, teacher = self.map(generator, self.mean), self.map(generator, 0.0)
        if self.outlier:
            features[0, :, 0, 0] = 1e4
        accumulator = DOUBLE if self.dtype == DOUBLE else SINGLE
        weight, bias, mean, var = (torch.randn(self.shape[1], generator=generator, dtype=accumulator) for _ in range(4))
        affine = [weight, bias] if self.affine else [None, None]
        running = [None, None] if self.training else [mean + self.mean, var.square() + 0.5]
        return [features, teacher, *affine, *running]


EPS = 1e-5


def run_case(case: Case) -> list[Tensor]:
    """Forward and backward on the emulator, with all they give. AssertionError where they differ from float64."""
    inputs = case.inputs()
    loss, stats, gradients = run_raw(case, inputs)
    right_loss, right_stats, right_gradients = oracle(case, inputs)
    accumulator = 1e-11 if case.dtype == DOUBLE else 2e-5
    stored = {HALF: 1e-3, BRAIN: 8e-3}.get(case.dtype, accumulator)
    # A mean is right to a part of the deviation, and the features' gradient to a part of the terms that cancel in it.
    deviation, terms = float(right_stats[1].max().sqrt()), float(right_gradients[1].abs().max())
    for name, ours, right, tolerance, scale in [
        ("loss", loss, right_loss, accumulator, 0.0),
        ("mean", stats[0], right_stats[0], accumulator, deviation),
        *[(f"stats[{row}]", stats[row], right_stats[row], accumulator, 0.0) for row in (1, 4, 5)],
        ("features", gradients[0], right_gradients[0], stored, terms),
        ("teacher", gradients[1], right_gradients[1], stored, 0.0),
        ("bias and weight", gradients[2], right_gradients[2], accumulator, 0.0),
    ]:
        bound = tolerance * max(scale, float(right.abs().max())) + (6e-8 if case.dtype == HALF else 0.0)
        torch.testing.assert_close(
            ours.double(), right, rtol=0, atol=bound, msg=lambda text, name=name: f"{name}: {text}"
        )
    return [loss, stats, *gradients]


def run_raw(case: Case, inputs: list[Tensor | None]) -> tuple[Tensor, Tensor, list[Tensor]]:
    ops = torch.ops.sftn_fast_emulated
    loss, stats = ops.adapted_hint_forward(*inputs, EPS)
    grad = torch.full_like(loss, -1.75)
    return loss, stats, ops.adapted_hint_backward(grad, *inputs[:4], stats, case.training, True, True, True)


def oracle(case: Case, inputs: list[Tensor | None]) -> tuple[Tensor, dict[int, Tensor], list[Tensor]]:
    """Return the loss, the public rows of stats, and the maps' gradients."""
    features, teacher, weight, bias, mean, var = (None if x is None else x.detach().double() for x in inputs)
    channels = case.shape[1]
    weight = torch.ones(channels).double() if weight is None else weight
    bias = torch.zeros(channels).double() if bias is None else bias
    leaves = [x.requires_grad_() for x in (features, teacher, weight, bias)]
    normalised = F.batch_norm(features, mean, var, weight, bias, case.training, 0.1, EPS)
    loss = F.mse_loss(F.relu(normalised), teacher)
    of_features, of_teacher, of_weight, of_bias = torch.autograd.grad(loss, leaves)
    if case.training:
        var, mean = torch.var_mean(features.detach(), (0, 2, 3))
    rows = {0: mean, 1: var, 4: of_bias, 5: of_weight}
    return loss.detach(), rows, [-1.75 * x for x in (of_features, of_teacher, torch.stack([of_bias, of_weight]))]


LAYOUTS = (False, True)

# Each line differs from the default in what it is there for.
CASES = [
    *(Case(dtype=dtype, channels_last=last) for dtype in (HALF, BRAIN, SINGLE, DOUBLE) for last in LAYOUTS),
    *(Case(shape=(2, 8, 4, 4), dtype=dtype, channels_last=True) for dtype in (HALF, SINGLE)),
    *(
        Case(shape=(3, 16, 2, 4), dtype=dtype, channels_last=last, offset=1)
        for dtype in (BRAIN, SINGLE)
        for last in LAYOUTS
    ),
    *(Case(shape=(5, 3, 7, 7), channels_last=last) for last in LAYOUTS),
    *(Case(shape=(2, 2, 40, 41), dtype=dtype, channels_last=last) for dtype in (HALF, SINGLE) for last in LAYOUTS),
    # planes that are no whole number of packs, beside each other in groups of channels that are, or are not
    *(Case(shape=(11, 16, 7, 7), dtype=dtype) for dtype in (HALF, BRAIN, SINGLE, DOUBLE)),
    *(Case(shape=shape, dtype=HALF) for shape in ((3, 5, 7, 7), (2, 4, 14, 14), (30, 8, 3, 3), (2, 8, 15, 15))),
    *(Case(shape=(11, 8, 7, 7), dtype=dtype, mean=100.0, offset=1) for dtype in (HALF, SINGLE)),
    Case(shape=(11, 8, 7, 7), mean=1e4),
    Case(shape=(3, 8, 17, 17), dtype=HALF),
    Case(shape=(6, 8, 7, 7), dtype=HALF, training=False, affine=False),
    Case(shape=(2, 130, 3, 3), channels_last=True),
    *(Case(shape=(3, 72, 2, 2), dtype=BRAIN, channels_last=last) for last in LAYOUTS),
    *(Case(shape=(300, 1, 4, 2), channels_last=last) for last in LAYOUTS),
    Case(shape=(70, 33, 1, 1)),
    *(Case(shape=(2, 1, 1, 1), channels_last=last) for last in LAYOUTS),
    *(Case(training=False, affine=affine, channels_last=last) for affine in (False, True) for last in LAYOUTS),
    *(Case(affine=False, channels_last=last) for last in LAYOUTS),
    Case(shape=(1, 3, 1, 1), training=False),
    *(Case(shape=(4, 3, 20, 20), mean=1e4, channels_last=last) for last in LAYOUTS),
    *(Case(shape=(4, 3, 20, 20), outlier=True, channels_last=last) for last in LAYOUTS),
]
