"""A table of every public loss at a small size. Properties that all losses share are tested once, over this table.

An :class:`Op` is one way to call a function of ``sftn_fast.ops``. Its arguments are drawn for each call, so that two
calls start from the same bits even if a call changes a state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sftn_fast import ops


@dataclass(frozen=True)
class Draw:
    """Reproducible values. ``spread`` is the standard deviation of logits, features and embeddings."""

    dtype: torch.dtype
    device: str
    spread: float
    generator: torch.Generator

    def normal(self, *shape: int) -> Tensor:
        values = self.spread * torch.randn(shape, generator=self.generator, dtype=torch.float64)
        return values.to(self.dtype).to(self.device)

    def uniform(self, *shape: int, low: float, high: float) -> Tensor:
        values = torch.rand(shape, generator=self.generator, dtype=torch.float64) * (high - low) + low
        return values.to(self.dtype).to(self.device)

    def integers(self, *shape: int, high: int) -> Tensor:
        return torch.randint(high, shape, generator=self.generator).to(self.device)

    def permutation(self, count: int) -> Tensor:
        return torch.randperm(count, generator=self.generator).to(self.device)

    @property
    def accumulator(self) -> torch.dtype:
        return torch.float64 if self.dtype == torch.float64 else torch.float32


Build = Callable[[Draw, int, int], dict[str, Any]]  # of a batch of n and a width (classes, channels, features)


@dataclass(frozen=True)
class Op:
    """A function with a builder of its arguments, and the roles of these: differentiable, refused, state, constant."""

    function: str
    build: Build
    differentiable: tuple[str, ...]
    options: dict[str, Any] = field(default_factory=dict)
    refused: tuple[str, ...] = ()  # floating-point arguments that raise if they require a gradient
    state: tuple[str, ...] = ()  # arguments that a call changes: tensors, or a module with its buffers
    constant: tuple[str, ...] = ()  # floating-point arguments documented as constants
    optional: tuple[str, ...] = ()  # arguments that may be None
    smooth: bool = True  # False: the gradient leaves out a dependency of the value on purpose
    shows_nan: bool = True  # False: the formula gives a row with NaN no weight
    long_products: bool = False  # PyTorch's matrix products sum in an order that depends on the number of threads
    traceable: bool = True  # False: torch.compile can't take the arguments, a torch.Generator
    draws: bool = False  # the result depends on the device's generator

    def arguments(
        self,
        *,
        dtype: torch.dtype = torch.float32,
        device: str = "cpu",
        n: int = 5,
        width: int = 9,
        spread: float = 1.5,
    ) -> dict[str, Any]:
        """Return keyword arguments, with the same bits for the same options."""
        generator = torch.Generator().manual_seed(0)
        return self.build(Draw(dtype, device, spread, generator), n, width)

    def call(self, module: Any, arguments: dict[str, Any]) -> tuple[Tensor, ...]:
        """Call the function and return its results, the differentiable one first."""
        result = getattr(module, self.function)(**arguments, **self.options)
        return tuple(result) if isinstance(result, tuple) else (result,)

    def states(self, arguments: dict[str, Any]) -> list[Tensor]:
        """Return copies of the tensors that a call may change."""
        states = [arguments[name] for name in self.state]
        tensors = [[x] if isinstance(x, Tensor) else list(x.buffers()) for x in states]
        return [x.detach().clone() for group in tensors for x in group]


@dataclass
class Outcome:
    """Results, gradients and states after a call."""

    results: tuple[Tensor, ...]
    grads: dict[str, Tensor]
    states: list[Tensor]

    @property
    def tensors(self) -> list[Tensor]:
        return [*self.results, *self.grads.values(), *self.states]


def upstream(total: Tensor) -> Tensor:
    """Return a grad_output that is neither one nor uniform."""
    if total.dim() == 0:
        return torch.full_like(total, -1.5)
    return torch.linspace(-1.5, 2.5, max(total.numel(), 1), device=total.device, dtype=total.dtype)[: total.numel()]


def evaluate(
    op: Op, arguments: dict[str, Any], *, module: Any = ops, call: Callable[..., tuple[Tensor, ...]] | None = None
) -> Outcome:
    """Run forward and backward, with all possible gradients. ``call`` replaces ``op.call``."""
    torch.manual_seed(0)
    leaves = {name: arguments[name].detach().requires_grad_() for name in op.differentiable}
    arguments = {**arguments, **leaves}
    results = (call or op.call)(module, arguments)
    grads: tuple[Tensor, ...] = ()
    if leaves:
        grads = torch.autograd.grad(results[0], list(leaves.values()), upstream(results[0]))
    detached = tuple(result.detach() for result in results)
    return Outcome(detached, dict(zip(leaves, grads, strict=True)), op.states(arguments))


TOLERANCE = {torch.float64: 1e-10, torch.float32: 5e-5, torch.float16: 6e-4, torch.bfloat16: 4.5e-3}
"""Tolerances relative to the largest value. Half precision rounds once, when the gradient is stored."""


def bound(true: Tensor, dtype: torch.dtype, slack: float = 0.0) -> float:
    """Return the allowed distance of a tensor of a dtype from ``true``."""
    largest = true.abs().max().item() if true.numel() else 0.0
    return TOLERANCE[dtype] * (largest + slack) + (6e-8 if dtype == torch.float16 else 1e-12)  # half's smallest step


def assert_close(actual: Outcome, true: Outcome, slack: float = 0.0) -> None:
    """Assert that results, gradients and states are near the float64 ones, each within the tolerance of its dtype.

    ``slack`` is for inputs with terms that cancel, a zero that is the difference of numbers of about that size.
    """
    named = [("result", x, y) for x, y in zip(actual.results, true.results, strict=True)]
    named += [(f"gradient of {name}", grad, true.grads[name]) for name, grad in actual.grads.items()]
    named += [("state", x, y) for x, y in zip(actual.states, true.states, strict=True)]
    for what, x, y in named:
        torch.testing.assert_close(
            x.double(),
            y.double(),
            rtol=0,
            atol=bound(y, x.dtype, slack) if x.is_floating_point() else 0,
            equal_nan=True,
            msg=lambda text, what=what: f"{what}: {text}",
        )


def bits(x: Tensor) -> Tensor:
    """Return the memory of a tensor as bytes, in which -0 differs from 0 and a NaN equals itself."""
    return x.contiguous().view(-1).view(torch.uint8)


def assert_same_bits(a: Outcome, b: Outcome) -> None:
    """Assert that all tensors of both are equal, bit for bit."""
    for i, (x, y) in enumerate(zip(a.tensors, b.tensors, strict=True)):
        assert torch.equal(bits(x), bits(y)), f"tensor {i} of {len(a.tensors)} differs"


def tensors_of(arguments: dict[str, Any], *, without: tuple[str, ...] = ()) -> Iterator[Tensor]:
    """Yield every tensor among the arguments, including a module's buffers."""
    for key, x in arguments.items():
        if key in without:
            continue
        if isinstance(x, Tensor):
            yield x
        elif isinstance(x, torch.nn.Module):
            yield from x.buffers()


def widened(arguments: dict[str, Any]) -> dict[str, Any]:
    """Convert values to float64, including modules' buffers."""
    return {
        name: x.double() if isinstance(x, torch.nn.Module) or (isinstance(x, Tensor) and x.is_floating_point()) else x
        for name, x in arguments.items()
    }


# ---- logits ----


def _logits(draw: Draw, n: int, width: int) -> dict[str, Any]:
    return {"student_logits": draw.normal(n, width), "teacher_logits": draw.normal(n, width)}


def _logits_and_target(draw: Draw, n: int, width: int) -> dict[str, Any]:
    return {**_logits(draw, n, width), "target": draw.integers(n, high=width)}


def _logits_and_probabilities(draw: Draw, n: int, width: int) -> dict[str, Any]:
    return {**_logits(draw, n, width), "target": draw.uniform(n, width, low=0, high=1)}


def _branches(draw: Draw, n: int, width: int) -> dict[str, Any]:
    return {
        "teacher_logits": draw.normal(n, width),
        "branch_logits": draw.normal(3, n, width),
        "target": draw.integers(n, high=width),
    }


def _logits_and_cost(draw: Draw, n: int, width: int) -> dict[str, Any]:
    return {**_logits_and_target(draw, n, width), "cost": draw.uniform(width, width, low=0.0, high=1.0)}


LOGITS = ("student_logits", "teacher_logits")


def _pair(function: str, build: Build, options: dict[str, Any]) -> Op:
    """Return a loss of the family `logits_divergence`, whose teacher is a constant."""
    return Op(function, build, LOGITS[:1], options, refused=LOGITS[1:])


BRANCHES = ("teacher_logits", "branch_logits")

# ---- contrastive ----

NUM_SAMPLES = 400


def _crd(draw: Draw, n: int, width: int, *, first: bool = False, dtype: torch.dtype | None = None) -> dict[str, Any]:
    memory = ops.CRDMemory(NUM_SAMPLES, width, dtype=dtype or draw.accumulator).to(draw.device)
    for bank in (memory.student_bank, memory.teacher_bank):
        rows = torch.randn(bank.shape, generator=draw.generator, dtype=torch.float64)
        bank.copy_(torch.nn.functional.normalize(rows))
    if not first:
        memory.z_student.fill_(500.0)
        memory.z_teacher.fill_(300.0)
    return {
        "student_embedding": torch.nn.functional.normalize(draw.normal(n, width)),
        "teacher_embedding": torch.nn.functional.normalize(draw.normal(n, width)),
        "index": draw.permutation(NUM_SAMPLES)[:n],
        "negatives": draw.integers(n, 11, high=NUM_SAMPLES),
        "memory": memory,
    }


def _negatives(draw: Draw, n: int, width: int, *, own_generator: bool = False) -> dict[str, Any]:
    generator = {"generator": torch.Generator(draw.device).manual_seed(3)} if own_generator else {}
    labels = torch.arange(NUM_SAMPLES, device=draw.device) % max(width, 2)
    return {"index": draw.permutation(NUM_SAMPLES)[:n], "labels": labels, "num_negatives": 20, **generator}


EMBEDDINGS = ("student_embedding", "teacher_embedding")

# ---- relational ----


def _vectors(draw: Draw, n: int, width: int) -> dict[str, Any]:
    return {"student": draw.normal(n, width), "teacher": draw.normal(n, width + 2)}


VECTORS = ("student", "teacher")

# ---- features ----


def _maps(draw: Draw, n: int, width: int) -> dict[str, Any]:
    return {"student_features": draw.normal(n, width, 4, 3), "teacher_features": draw.normal(n, width, 4, 3)}


def _other_maps(draw: Draw, n: int, width: int) -> dict[str, Any]:
    """Draw maps with different channels, the student's twice as large."""
    return {"student_features": draw.normal(n, width + 2, 6, 8), "teacher_features": draw.normal(n, width, 3, 4)}


def _other_channels(draw: Draw, n: int, width: int) -> dict[str, Any]:
    return {"student_features": draw.normal(n, width + 2, 4, 3), "teacher_features": draw.normal(n, width, 2, 3)}


def _factors(draw: Draw, n: int, width: int) -> dict[str, Any]:
    return {"student_factor": draw.normal(n, width, 4, 3), "teacher_factor": draw.normal(n, width, 4, 3)}


def _preacts(draw: Draw, n: int, width: int) -> dict[str, Any]:
    return {"student_preact": draw.normal(n, width, 4, 3), "teacher_preact": draw.normal(n, width, 4, 3)}


def _margins(draw: Draw, n: int, width: int) -> dict[str, Any]:
    return {**_preacts(draw, n, width), "margin": draw.uniform(width, low=-1, high=-0.1)}


def _norms(draw: Draw, n: int, width: int) -> dict[str, Any]:
    return {"weight": draw.uniform(width, low=-2, high=2), "bias": draw.uniform(width, low=-2, high=2)}


def _variational(draw: Draw, n: int, width: int) -> dict[str, Any]:
    return {
        "mean": draw.normal(n, width, 4, 3),
        "log_scale": draw.uniform(width, low=-2, high=5),
        "teacher_features": draw.normal(n, width, 4, 3),
    }


def _adapted(draw: Draw, n: int, width: int) -> dict[str, Any]:
    return {
        "features": draw.normal(n, width, 4, 3),
        "teacher_features": draw.normal(n, width, 4, 3),
        "weight": draw.uniform(width, low=0.5, high=1.5),
        "bias": draw.uniform(width, low=-0.5, high=0.5),
        "running_mean": draw.uniform(width, low=-1, high=1).to(draw.accumulator),
        "running_var": draw.uniform(width, low=0.5, high=2).to(draw.accumulator),
    }


MAPS = ("student_features", "teacher_features")
FACTORS = ("student_factor", "teacher_factor")
PREACTS = ("student_preact", "teacher_preact")
ADAPTED = ("features", "teacher_features", "weight", "bias")
RUNNING = ("running_mean", "running_var")
OPTIONAL = ("weight", "bias", *RUNNING)

TABLE: dict[str, Op] = {
    "kd": Op("kd_loss", _logits, LOGITS),
    "kd-sum-T3": Op("kd_loss", _logits, LOGITS, {"temperature": 3.0, "reduction": "sum"}),
    "kd-none": Op("kd_loss", _logits, LOGITS, {"temperature": 2, "reduction": "none"}),
    "kd_ce": Op("kd_ce_loss", _logits_and_target, LOGITS),
    "kd_ce-smooth": Op(
        "kd_ce_loss",
        _logits_and_target,
        LOGITS,
        {"temperature": 2.5, "kd_weight": 0.3, "ce_weight": 2.0, "label_smoothing": 0.1},
    ),
    "kd_ce-ignore": Op("kd_ce_loss", _logits_and_target, LOGITS, {"temperature": 8.0, "ignore_index": 0}),
    "kd_ce-soft": Op("kd_ce_loss", _logits_and_probabilities, LOGITS, {"label_smoothing": 0.1}, refused=("target",)),
    "sftn": Op("sftn_loss", _branches, BRANCHES),
    "sftn-reverse": Op(
        "sftn_loss",
        _branches,
        BRANCHES,
        {"temperature": 2.0, "kl_weight": 0.7, "direction": "branch_to_teacher", "branch_reduction": "sum"},
    ),
    "kd-standardized": _pair("kd_loss", _logits, {"temperature": 2.0, "standardize": True}),
    "kd_ce-standardized": _pair("kd_ce_loss", _logits_and_target, {"temperature": 2.0, "standardize": True}),
    "divergence": _pair("divergence_loss", _logits, {"temperature": 2.0}),
    "divergence-none": _pair("divergence_loss", _logits, {"kind": "jsd", "reduction": "none"}),
    "ttm": _pair("ttm_loss", _logits, {"gamma": 0.3, "weighted": True}),
    "nkd": _pair("nkd_loss", _logits_and_target, {"temperature": 2.0}),
    "dkd": _pair("dkd_loss", _logits_and_target, {}),
    "dkd-standardized": _pair("dkd_loss", _logits_and_target, {"temperature": 2.0, "standardize": True}),
    "rld": _pair("rld_loss", _logits_and_target, {}),
    "dist": Op("dist_loss", _logits, LOGITS),
    "dist-weights-T1": Op("dist_loss", _logits, LOGITS, {"temperature": 1.0, "inter_weight": 0.5, "intra_weight": 2.0}),
    "wkd": Op("wkd_loss", _logits_and_cost, LOGITS, {"iterations": 3}, refused=("cost",), long_products=True),
    "wkd-T8": Op(
        "wkd_loss",
        _logits_and_cost,
        LOGITS,
        {"temperature": 8, "gamma": 200.0, "regularization": 0.1, "iterations": 2},
        refused=("cost",),
        long_products=True,
    ),
    "crd": Op("crd_loss", _crd, EMBEDDINGS, state=("memory",)),
    "crd-frozen": Op("crd_loss", _crd, EMBEDDINGS, {"update": False}),
    "crd-half": Op("crd_loss", lambda *x: _crd(*x, dtype=torch.float16), EMBEDDINGS, state=("memory",)),
    # The first batch sets the normalisers from itself, as constants.
    "crd-first": Op("crd_loss", lambda *x: _crd(*x, first=True), EMBEDDINGS, state=("memory",), smooth=False),
    "negatives": Op("sample_negatives", _negatives, (), draws=True),
    "negatives-generator": Op(
        "sample_negatives", lambda *x: _negatives(*x, own_generator=True), (), traceable=False, draws=True
    ),
    "rkd-distance": Op("rkd_distance_loss", _vectors, VECTORS),
    "rkd-angle": Op("rkd_angle_loss", _vectors, VECTORS),
    "rkd": Op("rkd_loss", _vectors, VECTORS, {"distance_weight": 2.0, "angle_weight": 3.0}),
    "sp": Op("sp_loss", _other_channels, MAPS, long_products=True),
    "pkt": Op("pkt_loss", _vectors, VECTORS, shows_nan=False),
    "hint": Op("hint_loss", _maps, MAPS),
    "adapted_hint": Op("adapted_hint_loss", _adapted, ADAPTED, refused=RUNNING, state=RUNNING, optional=OPTIONAL),
    "adapted_hint-eval": Op(
        "adapted_hint_loss", _adapted, ADAPTED, {"training": False}, refused=RUNNING, optional=OPTIONAL
    ),
    "at": Op("at_loss", _other_maps, MAPS),
    "at-p1": Op("at_loss", _other_channels, MAPS, {"p": 1}),
    "vid": Op("vid_loss", _variational, ("mean", "log_scale", "teacher_features")),
    "ab": Op("ab_loss", _preacts, PREACTS[:1], {"margin": 0.7}, refused=PREACTS[1:]),
    "ft": Op("ft_loss", _factors, FACTORS),
    "ft-paper": Op("ft_loss", _factors, FACTORS, {"variant": "paper"}),
    "oh": Op("oh_loss", _margins, PREACTS, refused=("margin",)),
    "oh_margin": Op("oh_margin", _norms, (), constant=("weight", "bias")),
}

LOSSES = [name for name, op in TABLE.items() if op.differentiable]
