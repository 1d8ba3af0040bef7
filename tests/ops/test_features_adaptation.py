"""The adapted hint loss over backends, dtypes, shapes and layouts, compared with BatchNorm, ReLU and MSE in float64."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from backends import BACKENDS
from families import DTYPES, FAKES, MAP_LAYOUTS, accumulator, ids, needs_kernels, on_threads, refusals
from pairing import paired
from precision import assert_rounded_once, rounding
from torch import Tensor

from bench.measure import peak_memory
from sftn_fast import ops
from sftn_fast.ops import reference

FORMATS = {"contiguous": torch.contiguous_format, "channels last": torch.channels_last}
# One sample, one channel, one pixel, ragged rows, whole packs, several chunks.
SHAPES = [(2, 1, 1, 1), (7, 19, 1, 1), (1, 3, 2, 5), (4, 3, 4, 4), (5, 2, 7, 7), (3, 16, 4, 2), (2, 3, 33, 40)]
LARGE = [(64, 8, 16, 16), (3, 300, 5, 5), (700, 2, 3, 3)]
UPSTREAM = -1.75

formats = pytest.mark.parametrize("memory_format", FORMATS.values(), ids=FORMATS.keys())


@dataclass
class Arguments:
    features: Tensor
    teacher: Tensor
    weight: Tensor | None
    bias: Tensor | None
    mean: Tensor | None
    var: Tensor | None

    @property
    def leaves(self) -> list[Tensor | None]:
        return [self.features, self.teacher, self.weight, self.bias]

    def all(self) -> list[Tensor | None]:
        return [*self.leaves, self.mean, self.var]

    def map(self, function) -> Arguments:
        return Arguments(*(None if x is None else function(x) for x in self.all()))


@dataclass
class Result:
    loss: Tensor
    grads: list[Tensor | None]
    mean: Tensor | None
    var: Tensor | None


def make(shape, dtype, device, memory_format=torch.contiguous_format, *, offset=0.0, seed=0) -> Arguments:
    generator = torch.Generator().manual_seed(seed)
    features, teacher = (
        (torch.randn(shape, generator=generator, dtype=torch.float64) + mean).to(dtype).to(device)
        for mean in (offset, 0.0)
    )
    weight, bias, mean, spread = (torch.randn(shape[1], generator=generator, dtype=torch.float64) for _ in range(4))
    channels = (x.to(accumulator(dtype)).to(device) for x in (weight + 0.5, bias, mean + offset, spread.square() + 0.3))
    return Arguments(
        features.contiguous(memory_format=memory_format), teacher.contiguous(memory_format=memory_format), *channels
    )


def differentiate(loss, arguments: Arguments, **options) -> Result:
    """Return the loss, its gradients for a grad_output that is not one, and the running statistics after it."""
    leaves = [None if x is None else x.detach().requires_grad_() for x in arguments.leaves]
    mean, var = (None if x is None else x.clone() for x in (arguments.mean, arguments.var))
    result = loss(*leaves, mean, var, **options)
    result.backward(torch.tensor(UPSTREAM, dtype=result.dtype, device=result.device))
    return Result(result.detach(), [None if x is None else x.grad for x in leaves], mean, var)


def plain(features, teacher, weight, bias, mean, var, *, training=True, momentum=0.1, eps=1e-5) -> Tensor:
    """Compute the three steps in PyTorch."""
    return F.mse_loss(F.relu(F.batch_norm(features, mean, var, weight, bias, training, momentum, eps)), teacher)


# Relative to the largest gradient. Half precision rounds once, when the gradient is stored.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 3e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}


def check(arguments: Arguments, *, slack: float = 1.0, **options) -> Result:
    """Compare with float64, on the values that the backend gets."""
    actual = differentiate(ops.adapted_hint_loss, arguments, **options)
    true = differentiate(plain, arguments.map(Tensor.double), **options)
    dtype = torch.promote_types(arguments.features.dtype, arguments.teacher.dtype)
    assert actual.loss.dtype == accumulator(dtype)
    assert actual.loss.shape == ()
    close = slack * TOLERANCE[accumulator(dtype)]
    torch.testing.assert_close(actual.loss.double(), true.loss, rtol=close, atol=0)
    # Terms of the features' gradient may cancel; those of the teacher's do not and have the same size.
    terms = true.grads[1].abs().max().item()
    for leaf, grad, right in zip(arguments.leaves, actual.grads, true.grads, strict=True):
        assert (grad is None) == (leaf is None)
        if leaf is not None:
            assert grad.dtype == leaf.dtype
            bound = slack * TOLERANCE[leaf.dtype] * max(right.abs().max().item(), terms)
            bound += 6e-8 if leaf.dtype == torch.float16 else 0  # half's smallest step
            torch.testing.assert_close(grad.double(), right, rtol=0, atol=bound)
    if arguments.mean is not None:
        deviation = true.var.max().sqrt().item()
        torch.testing.assert_close(actual.mean.double(), true.mean, rtol=1e-6, atol=1e-6 * deviation)
        torch.testing.assert_close(actual.var.double(), true.var, rtol=2e-5, atol=0)
    return actual


# ---- values and gradients ----


@paired(backend=BACKENDS, dtype=DTYPES, training={"training": True, "evaluation": False}, memory_format=FORMATS)
def test_values_and_gradients(backend, dtype, training, memory_format):
    for shape in SHAPES:
        check(make(shape, dtype, backend.device, memory_format), training=training)


@paired(backend=BACKENDS, dtype=[torch.float32, torch.bfloat16], shape=LARGE, memory_format=FORMATS)
def test_many_values(backend, dtype, shape, memory_format):
    if backend.name == "emulated":
        shape = (min(shape[0], 40), *shape[1:])
    check(make(shape, dtype, backend.device, memory_format))


@paired(backend=BACKENDS, missing=["weight", "bias", "both"], training={"training": True, "evaluation": False})
def test_without_affine(backend, missing, training):
    arguments = make((3, 5, 4, 3), torch.float32, backend.device)
    if missing != "bias":
        arguments.weight = None
    if missing != "weight":
        arguments.bias = None
    check(arguments, training=training)


@pytest.mark.parametrize("eps", [1e-12, 1e-3, 2.0])
def test_eps(backend, eps):
    check(make((3, 5, 4, 3), torch.float32, backend.device), eps=eps)


@paired(backend=BACKENDS, teacher=DTYPES, features=DTYPES)
def test_mixed_dtypes(backend, features, teacher):
    arguments = make((3, 4, 4, 3), torch.float16, backend.device)
    arguments.features, arguments.teacher = arguments.features.to(features), arguments.teacher.to(teacher)
    check(arguments)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], **ids)
def test_all_in_half_precision(backend, dtype):
    """A module after ``.half()``: running statistics and parameters are in half precision too."""
    arguments = make((3, 4, 4, 3), dtype, backend.device).map(lambda x: x.to(dtype))
    actual = differentiate(ops.adapted_hint_loss, arguments)
    true = differentiate(plain, arguments.map(Tensor.double))
    for ours, right in zip([*actual.grads, actual.mean, actual.var], [*true.grads, true.mean, true.var], strict=True):
        assert ours.dtype == dtype
        torch.testing.assert_close(ours.double(), right, rtol=1e-2, atol=1e-2 * right.abs().max().item())


# ---- running statistics ----


@pytest.mark.parametrize("momentum", [0.0, 0.1, 1 / 3, 0.9, 1.0])
def test_running_statistics(backend, momentum):
    check(make((4, 3, 3, 5), torch.float32, backend.device), momentum=momentum)


def test_no_running_statistics_in_training(backend):
    arguments = make((4, 3, 3, 5), torch.float32, backend.device)
    arguments.mean = arguments.var = None
    check(arguments)


def test_evaluation_leaves_the_running_statistics_alone(backend):
    arguments = make((4, 3, 3, 5), torch.float32, backend.device)
    result = differentiate(ops.adapted_hint_loss, arguments, training=False)
    assert torch.equal(result.mean, arguments.mean)
    assert torch.equal(result.var, arguments.var)


# ---- extremes ----


@paired(backend=BACKENDS, offset=[1e4, -3e5], memory_format=FORMATS)
def test_large_mean(backend, offset, memory_format):
    """The deviations of features far from zero keep their digits, where PyTorch's rounded mean loses three."""
    if not backend.fused:
        pytest.skip("plain PyTorch loses digits")
    arguments = make((8, 3, 9, 9), torch.float32, backend.device, memory_format, offset=offset)
    for training in (True, False):
        check(arguments, training=training, slack=3)


@formats
def test_outlier(backend, memory_format):
    """One value is far from all others, first or last: sums of squares would lose the rest."""
    for where in (0, -1):
        arguments = make((8, 3, 9, 9), torch.float32, backend.device, memory_format)
        arguments.features[where, :, where, where] = 1e5
        check(arguments, slack=10)


@paired(backend=BACKENDS, dtype=DTYPES, memory_format=FORMATS)
def test_no_variance(backend, dtype, memory_format):
    arguments = make((6, 3, 4, 4), dtype, backend.device, memory_format)
    arguments.features[:, 1] = 3.3
    result = differentiate(ops.adapted_hint_loss, arguments)
    assert all(grad.isfinite().all() for grad in result.grads)
    assert result.loss.isfinite()
    assert result.var[1].item() == pytest.approx(0.9 * arguments.var[1].item(), rel=1e-5)


@formats
def test_half_precision_of_large_norm(backend, memory_format):
    """Squares beyond float16's range."""
    arguments = make((6, 3, 4, 4), torch.float16, backend.device, memory_format)
    arguments.features *= 3000
    arguments.teacher *= 3000
    check(arguments)


@paired(backend=BACKENDS, dtype=DTYPES, training={"training": True, "evaluation": False}, memory_format=FORMATS)
def test_nan_shows(backend, dtype, training, memory_format):
    arguments = make((3, 4, 4, 4), dtype, backend.device, memory_format)
    arguments.features[1, 2, 3, 0] = torch.nan
    result = differentiate(ops.adapted_hint_loss, arguments, training=training)
    assert result.loss.isnan()
    assert result.grads[0][1, 2, 3, 0].isnan()
    assert result.grads[2].isnan().tolist() == [False, False, True, False]
    assert result.grads[0][:, [0, 1, 3]].isfinite().all()


@paired(backend=BACKENDS, training={"training": True, "evaluation": False}, shape=[(0, 3, 4, 4), (2, 3, 0, 4)])
def test_empty(backend, shape, training):
    arguments = make(shape, torch.float32, backend.device)
    result = differentiate(ops.adapted_hint_loss, arguments, training=training)
    assert result.loss.item() == 0
    assert [grad.shape for grad in result.grads] == [x.shape for x in arguments.leaves]
    assert not any(grad.any() for grad in result.grads)
    assert torch.equal(result.mean, arguments.mean)
    assert torch.equal(result.var, arguments.var)


def test_one_value_a_channel(backend):
    arguments = make((1, 3, 1, 1), torch.float32, backend.device)
    check(arguments, training=False)
    with pytest.raises(ValueError, match=r"more than one value a channel in training, got \[1, 3, 1, 1\]"):
        ops.adapted_hint_loss(*arguments.all())


# ---- layouts ----


@paired(backend=BACKENDS, of_teacher=MAP_LAYOUTS, of_features=MAP_LAYOUTS)
def test_layouts(backend, of_features, of_teacher):
    arguments = make((4, 8, 4, 4), torch.float32, backend.device)
    arguments.features, arguments.teacher = of_features(arguments.features), of_teacher(arguments.teacher)
    check(arguments)


@needs_kernels
@formats
def test_memory_is_one_map(memory_format):
    """No copy in either layout and no saved map: only the gradient, in the features' layout."""
    arguments = make((16, 32, 16, 16), torch.float32, "cpu", memory_format)
    features = arguments.features.requires_grad_()

    def step():
        features.grad = None
        ops.adapted_hint_loss(*arguments.all()).backward()

    assert peak_memory(step) < 1.05 * features.nbytes
    assert features.grad.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("name", ["weight", "bias", "mean", "var"])
def test_strided_channels(backend, name):
    arguments = make((3, 5, 4, 4), torch.float32, backend.device)
    setattr(arguments, name, getattr(arguments, name).repeat_interleave(3)[::3])
    for training in (True, False):
        check(arguments, training=training)


# ---- what may be asked for ----


def test_gradients_only_where_asked(backend):
    arguments = make((3, 4, 3, 3), torch.float64, backend.device)
    full = differentiate(ops.adapted_hint_loss, arguments).grads
    for wanted in range(1, 16):
        flags = [bool(wanted >> i & 1) for i in range(4)]
        leaves = [x.detach().requires_grad_(flag) for x, flag in zip(arguments.leaves, flags, strict=True)]
        loss = ops.adapted_hint_loss(*leaves, None, None)
        loss.backward(torch.full_like(loss, UPSTREAM))
        for leaf, flag, grad in zip(leaves, flags, full, strict=True):
            assert (leaf.grad is not None) == flag
            if flag:
                torch.testing.assert_close(leaf.grad, grad)


def test_without_gradients(backend):
    arguments = make((3, 4, 3, 3), torch.float32, backend.device)
    arguments.features.requires_grad_()
    with torch.no_grad():
        quiet = ops.adapted_hint_loss(*arguments.leaves, None, None)
    assert not quiet.requires_grad
    assert quiet.item() == ops.adapted_hint_loss(*arguments.leaves, None, None).item()
    before = arguments.mean.clone()
    with torch.inference_mode():
        assert ops.adapted_hint_loss(*arguments.all()).item() == quiet.item()
    assert not torch.equal(before, arguments.mean)


@paired(backend=BACKENDS, memory_format=FORMATS, training={"training": True, "evaluation": False})
def test_gradcheck(backend, training, memory_format):
    arguments = make((2, 3, 2, 3), torch.float64, backend.device, memory_format)
    running = (None, None) if training else (arguments.mean, arguments.var)
    leaves = [x.requires_grad_() for x in arguments.leaves]
    assert torch.autograd.gradcheck(
        lambda *x: ops.adapted_hint_loss(*x, *running, training=training), leaves, fast_mode=True
    )


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], **ids)
def test_half_precision_is_rounded_once(dtype):
    arguments = make((16, 8, 8, 8), dtype, "cpu")
    true = differentiate(plain, arguments.map(Tensor.double))
    ours = differentiate(ops.adapted_hint_loss, arguments)
    off = rounding(16 * 8 * 8, 8)
    assert ours.loss.item() == pytest.approx(true.loss.item(), rel=off)
    for our_grad, grad in zip(ours.grads, true.grads, strict=True):
        assert_rounded_once(our_grad, grad, off)


# ---- conduct ----


@paired(backend=BACKENDS, dtype=DTYPES, memory_format=FORMATS)
def test_inputs_are_not_written_to(backend, dtype, memory_format):
    arguments = make((3, 5, 4, 4), dtype, backend.device, memory_format)
    before = arguments.map(Tensor.clone)
    differentiate(ops.adapted_hint_loss, arguments)
    ops.adapted_hint_loss(*arguments.leaves, arguments.mean, arguments.var, training=False)
    assert all(torch.equal(a, b) for a, b in zip(arguments.all(), before.all(), strict=True))


def same_bits(a: Result, b: Result) -> bool:
    pairs = zip([a.loss, a.mean, a.var, *a.grads], [b.loss, b.mean, b.var, *b.grads], strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


@formats
def test_same_inputs_same_bits(backend, memory_format):
    arguments = make((5, 16, 9, 9), torch.float32, backend.device, memory_format)
    first, second = (differentiate(ops.adapted_hint_loss, arguments) for _ in range(2))
    assert same_bits(first, second)


@needs_kernels
@paired(dtype=[torch.float32, torch.bfloat16], shape=[(64, 33, 16, 16), (64, 16, 15, 15)], memory_format=FORMATS)
def test_threads_do_not_change_the_bits(dtype, shape, memory_format):
    arguments = make(shape, dtype, "cpu", memory_format)
    results = on_threads(lambda: differentiate(ops.adapted_hint_loss, arguments))
    assert same_bits(results[0], results[1])
    assert same_bits(results[0], results[2])


def test_autocast_leaves_the_loss_alone(backend):
    arguments = make((3, 5, 4, 4), torch.bfloat16, backend.device)
    alone = differentiate(ops.adapted_hint_loss, arguments)
    with torch.autocast(backend.device, dtype=torch.bfloat16):
        cast = differentiate(ops.adapted_hint_loss, arguments)
    assert cast.loss.dtype == torch.float32
    assert cast.loss.item() == pytest.approx(alone.loss.item(), rel=1e-6)
    for a, b in zip(cast.grads, alone.grads, strict=True):
        torch.testing.assert_close(a, b)


# ---- compilers ----


@needs_kernels
@formats
def test_opcheck(memory_format):
    """Both layouts and single gradients; `test_compile.py` has the dtypes, and traces the loss."""
    arguments = make((2, 3, 4, 4), torch.float32, "cpu", memory_format)
    namespace = torch.ops.sftn_fast
    for running in ((None, None), (arguments.mean, arguments.var)):
        torch.library.opcheck(
            namespace.adapted_hint_forward.default, (*arguments.leaves, *running, 1e-5), test_utils=FAKES
        )
    loss, stats = namespace.adapted_hint_forward(*arguments.leaves, None, None, 1e-5)
    for wanted in ((True, True, True), (True, False, False), (False, True, False), (False, False, True)):
        torch.library.opcheck(
            namespace.adapted_hint_backward.default,
            (torch.ones_like(loss), *arguments.leaves, stats, True, *wanted),
            test_utils=FAKES,
        )


# ---- what is refused ----

X = torch.zeros(2, 3, 4, 4)
C = torch.ones(3)


def call(features=X, teacher=X, weight=C, bias=C, mean=C, var=C, **options):
    return ops.adapted_hint_loss(features, teacher, weight, bias, mean, var, **options)


TYPE_ERRORS = {
    "a list": (lambda: call([[0.0]]), "^features must be a tensor, got list"),
    "integers": (lambda: call(teacher=X.long()), "^teacher_features must be float16, .* got torch.int64"),
    "weight a number": (lambda: call(weight=1.0), "^weight must be a tensor, got float"),
    "bias integers": (lambda: call(bias=C.int()), "^bias must be float16, .* got torch.int32"),
    "momentum none": (lambda: call(momentum=None), "^momentum must be a number, got NoneType"),
    "training text": (lambda: call(training="no"), "^training must be True or False, got str"),
    "eps text": (lambda: call(eps="1e-5"), "^eps must be a number, got str"),
}

VALUE_ERRORS = {
    "three dimensions": (lambda: call(X[0], X[0]), r"^features must be \[N, C, H, W\] .* got \[3, 4, 4\]"),
    "no channels": (lambda: call(X[:, :0], X[:, :0]), r"^features must be .* C at least 1, got \[2, 0, 4, 4\]"),
    "another size": (
        lambda: call(teacher=X[..., :2]),
        r"^teacher_features must have the shape of features, \[2, 3, 4, 4\], got \[2, 3, 4, 2\]",
    ),
    "another device": (
        lambda: call(teacher=X.to("meta")),
        "^teacher_features must be on the device of features, cpu, got meta",
    ),
    "weight's size": (lambda: call(weight=C[:2]), r"^weight must be \[C\] = \[3\], got \[2\]"),
    "bias's dimensions": (lambda: call(bias=C[:, None]), r"^bias must be \[C\] = \[3\], got \[3, 1\]"),
    "mean's size": (lambda: call(mean=torch.ones(4)), r"^running_mean must be \[C\] = \[3\], got \[4\]"),
    "var's device": (lambda: call(var=C.to("meta")), "^running_var must be on the device of features, cpu, got meta"),
    "mean alone": (lambda: call(var=None), "given together or not at all, got no running_var"),
    "var alone": (lambda: call(mean=None), "given together or not at all, got no running_mean"),
    "evaluation without statistics": (
        lambda: call(mean=None, var=None, training=False),
        "must be given where training is False, got None",
    ),
    "mean learned": (lambda: call(mean=C.clone().requires_grad_()), "^running_mean must not require a gradient"),
    "momentum": (lambda: call(momentum=1.5), "^momentum must be from 0 to 1, got 1.5"),
    "eps": (lambda: call(eps=0.0), "^eps must be a finite number above 0, got 0.0"),
}


test_type_errors = refusals(TypeError, TYPE_ERRORS)
test_value_errors = refusals(ValueError, VALUE_ERRORS)


def test_the_reference_is_exported():
    arguments = make((2, 3, 4, 4), torch.float32, "cpu")
    own, exported = (
        differentiate(loss, arguments).loss.item() for loss in (ops.adapted_hint_loss, reference.adapted_hint_loss)
    )
    assert own == pytest.approx(exported, rel=1e-6)
