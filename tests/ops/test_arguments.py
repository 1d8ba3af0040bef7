"""Errors of the losses: each message names the argument, the accepted values and the value it got."""

from __future__ import annotations

import dataclasses
import inspect
import math

import pytest
import torch
from backends import BACKENDS
from every_op import TABLE, assert_close, evaluate, widened
from families import ids, refusals
from pairing import paired

from sftn_fast import ops

X = torch.zeros(4, 3)
Y = torch.zeros(4, dtype=torch.int64)


def kd(student=X, teacher=X, *args, **kwargs):
    return ops.kd_loss(student, teacher, *args, **kwargs)


def kd_ce(student=X, teacher=X, target=Y, *args, **kwargs):
    return ops.kd_ce_loss(student, teacher, target, *args, **kwargs)


def sftn(teacher=X, branches=(X, X), target=Y, *args, **kwargs):
    return ops.sftn_loss(teacher, branches, target, *args, **kwargs)


TYPE_ERRORS = {
    "a list": (lambda: kd([[0.0]]), "student_logits must be a tensor, got list"),
    "an array": (lambda: kd(X, X.numpy()), "teacher_logits must be a tensor, got ndarray"),
    "integers": (lambda: kd(X.long()), "student_logits must be float16, bfloat16, float32 or float64, got torch.int64"),
    "complex": (lambda: sftn(X.cfloat()), "teacher_logits must be float16, .* got torch.complex64"),
    "float8": (
        lambda: sftn(X, [X, X.to(torch.float8_e5m2)]),
        r"branch_logits\[1\] must be float16.* got torch.float8_e5m2",
    ),
    "target int32": (
        lambda: kd_ce(target=Y.int()),
        "target must be int64 class indices or floating-point probabilities, got torch.int32",
    ),
    "target bool": (lambda: sftn(target=X > 0), "target must be int64 class indices or .* got torch.bool"),
    "target float8": (
        lambda: kd_ce(target=X.to(torch.float8_e5m2)),
        "target must be int64 class indices or .* got torch.float8_e5m2",
    ),
    "no target": (lambda: kd_ce(target=None), "target must be a tensor, got NoneType"),
    "temperature text": (lambda: kd(temperature="4"), "temperature must be a number, got str"),
    "temperature bool": (lambda: kd(temperature=True), "temperature must be a number, got bool"),
    "weight learned": (
        lambda: kd_ce(ce_weight=torch.nn.Parameter(torch.ones(()))),
        "ce_weight must be a number: the loss has no gradient with respect to it",
    ),
    "weight none": (lambda: sftn(kl_weight=None), "kl_weight must be a number, got NoneType"),
    "ignore_index float": (lambda: kd_ce(ignore_index=1.5), "ignore_index must be an int, got float"),
    "branches generator": (
        lambda: sftn(branches=(x for x in [X])),
        "branch_logits must be a list or tuple .* got generator",
    ),
}

VALUE_ERRORS = {
    "one dimension": (
        lambda: kd(X[0], X[0]),
        r"student_logits must be \[N, C\] or \[N, C, d1, ...\] with C at least 1, got \[3\]",
    ),
    "three dimensions": (lambda: sftn(X[None], X[None]), r"teacher_logits must be \[N, C\] .* got \[1, 4, 3\]"),
    "no classes": (
        lambda: kd(X[:, :0], X[:, :0]),
        r"student_logits must be \[N, C\] or \[N, C, d1, ...\] with C at least 1, got \[4, 0\]",
    ),
    "teacher shape": (
        lambda: kd(X, X[:2]),
        r"teacher_logits must have the shape of student_logits, \[4, 3\], got \[2, 3\]",
    ),
    "teacher broadcasts": (
        lambda: kd(X, X[:1]),
        r"teacher_logits must have the shape of student_logits, \[4, 3\], got",
    ),
    "teacher device": (
        lambda: kd(X, X.to("meta")),
        "teacher_logits must be on the device of student_logits, cpu, got meta",
    ),
    "branch shape": (lambda: sftn(branches=[X, X[:, :2]]), r"branch_logits\[1\] must have the shape of teacher_logits"),
    "branches flat": (
        lambda: sftn(branches=X),
        r"branch_logits must be K tensors \[N, C\] or one \[K, N, C\], got \[4, 3\]",
    ),
    "no branches": (lambda: sftn(branches=[]), "branch_logits must hold at least one branch, got none"),
    "target length": (lambda: kd_ce(target=Y[:3]), r"target must be \[N\] = \[4\], got \[3\]"),
    "target one-hot": (
        lambda: kd_ce(target=X.long()),
        r"target must be \[N\] = \[4\], got \[4, 3\]; probabilities \[N, C\] must be floating-point",
    ),
    "target of floats": (
        lambda: kd_ce(target=X[:, 0]),
        r"target must be \[N, C\] = \[4, 3\] for probabilities, got \[4\]",
    ),
    "probabilities of fewer classes": (
        lambda: sftn(target=X[:, :2]),
        r"target must be \[N, C\] = \[4, 3\] for probabilities, got \[4, 2\]",
    ),
    "probabilities elsewhere": (
        lambda: sftn(target=X.to("meta")),
        "target must be on the device of the logits, cpu, got meta",
    ),
    "probabilities learned": (
        lambda: sftn(target=X.clone().requires_grad_()),
        "target must not require a gradient: .* detach it",
    ),
    "probabilities and a class to ignore": (
        lambda: kd_ce(target=X, ignore_index=0),
        "ignore_index must be negative beside a target of probabilities, .* got 0",
    ),
    "target device": (lambda: kd_ce(target=Y.to("meta")), "target must be on the device of the logits, cpu, got meta"),
    "temperature zero": (lambda: kd(temperature=0), "temperature must be a finite number above 0, got 0"),
    "temperature negative": (lambda: sftn(X, [X], Y, -1.0), "temperature must be a finite number above 0, got -1.0"),
    "temperature nan": (lambda: kd(temperature=math.nan), "temperature must be a finite number above 0, got nan"),
    "temperature inf": (lambda: kd(temperature=math.inf), "temperature must be a finite number above 0, got inf"),
    "temperature a huge int": (lambda: kd(temperature=10**400), "temperature must be a number that a float can hold"),
    "ignore_index a huge int": (
        lambda: kd_ce(ignore_index=2**63),
        "ignore_index must be an int of 64 bits, got 9223372036854775808",
    ),
    "weight nan": (lambda: kd_ce(kd_weight=math.nan), "kd_weight must be a finite number, got nan"),
    "weight inf": (lambda: sftn(teacher_weight=math.inf), "teacher_weight must be a finite number, got inf"),
    "smoothing": (lambda: kd_ce(label_smoothing=1.1), "label_smoothing must be from 0 to 1, got 1.1"),
    "smoothing nan": (lambda: kd_ce(label_smoothing=math.nan), "label_smoothing must be from 0 to 1, got nan"),
    "reduction": (lambda: kd(reduction="mean"), "reduction must be one of 'batchmean', 'sum', 'none', got 'mean'"),
    "direction": (lambda: sftn(direction="both"), "direction must be one of 'teacher_to_branch', .* got 'both'"),
    "branch_reduction": (
        lambda: sftn(branch_reduction="max"),
        "branch_reduction must be one of 'mean', 'sum', got 'max'",
    ),
    "backend": (lambda: ops.set_backend("cuda"), "backend must be one of 'auto', 'fused', 'reference', got 'cuda'"),
}


test_type_errors = refusals(TypeError, TYPE_ERRORS)
test_value_errors = refusals(ValueError, VALUE_ERRORS)


@paired(backend=BACKENDS, needs_grad=[True, False], wrong=[3, -1, -100, 2**62])
def test_class_out_of_range(backend, wrong, needs_grad):
    if backend.name == "cuda":
        pytest.skip("a device-side assertion, which ends the process's CUDA context")
    student = X.to(backend.device).clone().requires_grad_(needs_grad)
    target = torch.tensor([0, wrong, 1, 2], device=backend.device)
    message = rf"target must hold classes from 0 to 2 or ignore_index \(-7\), got {wrong}"
    with pytest.raises(ValueError, match=message):
        ops.kd_ce_loss(student, student.detach(), target, ignore_index=-7)
    if wrong != -100:
        with pytest.raises(ValueError, match=rf"target must hold classes from 0 to 2 .* got {wrong}"):
            ops.sftn_loss(student, [student], target)


def test_numbers_of_other_types():
    """NumPy scalars and integers count as numbers."""
    np = pytest.importorskip("numpy")
    plain = kd(X + 1, X, 2.0)
    for temperature in (2, np.float32(2), np.int64(2)):
        assert kd(X + 1, X, temperature).item() == plain.item()
    assert kd_ce(kd_weight=np.float64(1), ce_weight=0, ignore_index=1).total.item() == 0


# ---- every number, of every function ----

NUMBERS = [math.nan, math.inf, -math.inf, 1e308, -1e308, 3e38, 1e30, 1e15, 1e12, 16.0, 0.0, -0.0, -1.0]
NUMBERS += [1e-3, 1e-12, 1e-18, 1e-30, 1e-38, 1e-320, -1e-320, 5e-324]


def float_arguments():
    """Yield (name of an op, its argument) for each number that a function takes."""
    first = {op.function: name for name, op in reversed(TABLE.items())}
    for function, name in first.items():
        for key, parameter in inspect.signature(getattr(ops, function)).parameters.items():
            if "float" in parameter.annotation.split(" | "):
                yield pytest.param(name, key, id=f"{function}-{key}")


@pytest.mark.parametrize(("name", "key"), float_arguments())
def test_every_number_is_refused_or_computed_with(backend, name, key):
    """Every number raises an error that names the argument, or gives the value and gradients of float64."""
    op = TABLE[name]
    accepted = 0
    for number in NUMBERS:
        of_call = dataclasses.replace(op, options={**op.options, key: number})
        try:
            actual = evaluate(of_call, op.arguments(device=backend.device))
        except ValueError as error:
            assert str(error).startswith(key), number
            continue
        accepted += 1
        true = evaluate(of_call, widened(op.arguments(device=backend.device)), module=ops.reference)
        assert_close(actual, true, slack=1e-2)  # a large eps leaves a difference of numbers of about that size
    assert accepted


@pytest.mark.parametrize(("key", "numbers"), [("temperature", NUMBERS), ("momentum", NUMBERS)])
def test_every_number_of_a_memory(key, numbers):
    for number in numbers:
        try:
            memory = ops.CRDMemory(9, 4, **{key: number})
        except ValueError as error:
            assert str(error).startswith(key), number
            continue
        rows = torch.nn.functional.normalize(torch.ones(2, 4))
        loss = ops.crd_loss(rows, rows, torch.tensor([0, 1]), torch.tensor([[2, 3], [4, 5]]), memory)
        assert loss.isfinite(), number
        assert memory.student_bank.isfinite().all()


# ---- every loss, over the table of every_op ----


def tensor_arguments(names):
    """Return (name, argument) for each tensor among the arguments of each op."""
    return [
        pytest.param(name, key, id=f"{name}-{key}")
        for name in names
        for key, value in TABLE[name].arguments().items()
        if isinstance(value, torch.Tensor)
    ]


ARGUMENTS = tensor_arguments(TABLE)
FLOATING = [pytest.param(name, key, id=f"{name}-{key}") for name, op in TABLE.items() for key in op.differentiable]


def refuse(name, key, change, error):
    """Assert that the call raises `error` with a message that names the argument, also where the others learn."""
    for learns in (False, True):
        arguments = TABLE[name].arguments()
        wrong = change(arguments[key])
        for other in TABLE[name].differentiable:
            arguments[other].requires_grad_(learns)
        with pytest.raises(error, match=rf"\b{key}\b"):
            TABLE[name].call(ops, arguments | {key: wrong})


@pytest.mark.parametrize(("name", "key"), ARGUMENTS)
def test_what_is_no_tensor_is_refused(name, key):
    refuse(name, key, lambda x: x.numpy(), TypeError)
    if key not in TABLE[name].optional:
        refuse(name, key, lambda x: None, TypeError)


@pytest.mark.parametrize(("name", "key"), FLOATING)
@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64, torch.float8_e5m2, torch.bool], **ids)
def test_what_does_not_float_is_refused(name, key, dtype):
    refuse(name, key, lambda x: x.to(dtype), TypeError)


LAYOUTS = {
    "sparse_coo": torch.Tensor.to_sparse,
    "sparse_csr": lambda x: x.to_sparse_csr() if x.dim() == 2 else x.to_sparse(),
    "mkldnn": lambda x: x.to_mkldnn() if x.is_floating_point() else x.to_sparse(),
    "nested": lambda x: torch.nested.nested_tensor([x, x]),
    "jagged": lambda x: torch.nested.nested_tensor([x, x], layout=torch.jagged),
}


@pytest.mark.filterwarnings("ignore::UserWarning")  # of prototypes of PyTorch
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("name", "key"), ARGUMENTS)
def test_what_is_not_dense_is_refused(name, key, layout):
    for learns in (False, True):
        arguments = TABLE[name].arguments()
        wrong = LAYOUTS[layout](arguments[key])
        for other in TABLE[name].differentiable:
            arguments[other].requires_grad_(learns)
        with pytest.raises(TypeError, match=rf"^{key}\S* must be a dense tensor, got a tensor of layout \w+$"):
            TABLE[name].call(ops, arguments | {key: wrong})


@pytest.mark.parametrize(("name", "key"), FLOATING)
def test_what_is_quantised_is_refused(name, key):
    refuse(name, key, lambda x: torch.quantize_per_tensor(x.float(), 0.1, 0, torch.qint8), TypeError)


@pytest.mark.parametrize(("name", "key"), ARGUMENTS)
def test_wrong_numbers_of_dimensions_are_refused(name, key):
    refuse(name, key, lambda x: x.sum().to(x.dtype), ValueError)
    refuse(name, key, lambda x: x[None, None, None], ValueError)


BESIDES = [p for p in ARGUMENTS if p.values[1] != next(iter(TABLE[p.values[0]].arguments()))]
"""All but the first argument, with which the others must agree."""


@pytest.mark.parametrize(("name", "key"), BESIDES)
def test_wrong_devices_are_refused(name, key):
    refuse(name, key, lambda x: x.to("meta"), ValueError)


@pytest.mark.parametrize(("name", "key"), [p for p in BESIDES if p.values[1] != "labels"])
def test_wrong_sizes_are_refused(name, key):
    refuse(name, key, lambda x: torch.cat([x, x], 1 if key == "branch_logits" else 0), ValueError)
