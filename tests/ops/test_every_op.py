"""Contracts of every loss, over the table of :mod:`every_op`: dtypes, layouts, edge cases and unchanged inputs."""

from __future__ import annotations

import inspect

import pytest
import torch
from backends import BACKENDS
from every_op import (
    LOSSES,
    TABLE,
    TOLERANCE,
    Op,
    Outcome,
    assert_close,
    assert_same_bits,
    bits,
    evaluate,
    tensors_of,
    widened,
)
from families import ids, on_threads
from pairing import paired
from precision import assert_rounded_once

from sftn_fast import ops
from sftn_fast.ops import reference

each = pytest.mark.parametrize("name", TABLE)
each_loss = pytest.mark.parametrize("name", LOSSES)
HALF = [torch.float16, torch.bfloat16]
DTYPES = [*HALF, torch.float32, torch.float64]
SIZES = [(5, 9), (8, 16), (3, 33)]

# ---- the table ----

SWITCHES = {"backend", "set_backend", "unchecked", "set_unchecked"}


def public_functions(module) -> set[str]:
    return {name for name in module.__all__ if inspect.isfunction(getattr(module, name))} - SWITCHES


def test_table_holds_every_public_function():
    assert {op.function for op in TABLE.values()} == public_functions(ops)


def test_reference_has_the_same_functions():
    assert public_functions(reference) == public_functions(ops)


@pytest.mark.parametrize("function", sorted(public_functions(ops)))
def test_reference_has_the_same_signature(function):
    assert inspect.signature(getattr(reference, function)) == inspect.signature(getattr(ops, function))


@each
def test_table_names_what_takes_gradients(name):
    """Each floating-point tensor takes a gradient or raises: anything else would be a silent zero."""
    arguments = TABLE[name].arguments()
    floating = {key for key, x in arguments.items() if isinstance(x, torch.Tensor) and x.is_floating_point()}
    assert floating == {*TABLE[name].differentiable, *TABLE[name].refused, *TABLE[name].constant}


# ---- values ----


def truth(op: Op, arguments) -> Outcome:
    """Evaluate the reference in float64, on the values that the backend gets."""
    return evaluate(op, widened(arguments), module=reference)


def assert_dtypes(outcome: Outcome, arguments) -> None:
    given = [arguments[key].dtype for key in outcome.grads]
    assert [grad.dtype for grad in outcome.grads.values()] == given
    if given:
        wide = torch.float64 if torch.float64 in given else torch.float32
        assert {result.dtype for result in outcome.results} == {wide}


@each
@pytest.mark.parametrize("dtype", DTYPES, **ids)
def test_values_and_gradients(backend, name, dtype):
    """Each kernel, at one of three sizes by its dtype; the family's tests have more."""
    op = TABLE[name]
    n, width = SIZES[DTYPES.index(dtype) % len(SIZES)]
    arguments = op.arguments(dtype=dtype, device=backend.device, n=n, width=width)
    expected = truth(op, op.arguments(dtype=dtype, device=backend.device, n=n, width=width))
    actual = evaluate(op, arguments)
    assert_dtypes(actual, arguments)
    assert_close(actual, expected)


@paired(backend=BACKENDS, name=LOSSES, dtype=HALF)
def test_half_precision_is_rounded_once(backend, name, dtype):
    """Inputs in half precision, arithmetic in float32, and one rounding when results are stored."""
    op = TABLE[name]
    same = {"dtype": dtype, "device": backend.device, "n": 16, "width": 24}
    ours, true = evaluate(op, op.arguments(**same)), truth(op, op.arguments(**same))
    for actual, right in zip(ours.tensors, true.tensors, strict=True):
        assert_rounded_once(actual, right, TOLERANCE[torch.float32])


@paired(backend=BACKENDS, name=LOSSES, pair=[HALF, [torch.bfloat16, torch.float32], [torch.float64, torch.float16]])
def test_mixed_dtypes(backend, name, pair):
    """The first argument has one dtype, the others another: each gets a gradient of its own dtype."""
    op = TABLE[name]

    def mixed():
        widest = torch.float64 if torch.float64 in pair else torch.bfloat16  # of the memory, for crd_loss
        arguments = op.arguments(dtype=widest, device=backend.device)
        dtypes = dict.fromkeys(op.differentiable, pair[1]) | {op.differentiable[0]: pair[0]}
        return arguments | {key: arguments[key].to(dtype) for key, dtype in dtypes.items()}

    arguments = mixed()
    actual = evaluate(op, arguments)
    assert_dtypes(actual, arguments)
    assert_close(actual, truth(op, mixed()))


@pytest.mark.parametrize(
    "name", [name for name in LOSSES if name != "crd-first"]
)  # its normalisers have the banks' dtype
def test_float64_beside_float32(backend, name):
    """One argument is float64, or all but one: the whole result is as exact as float64."""
    op = TABLE[name]
    keys = [*op.differentiable, *(key for key in op.refused if key not in op.state)]
    for key, others in ((key, others) for key in keys for others in (False, True)):

        def mixed(key=key, others=others):
            arguments = op.arguments(dtype=torch.float32, device=backend.device)
            return arguments | {k: arguments[k].double() for k in keys if (k != key) == others}

        arguments = mixed()
        if not any(arguments[k].dtype == torch.float64 for k in keys):
            continue
        if op.function == "ab_loss" and arguments["student_preact"].dtype != torch.float64:
            continue  # of the teacher only the signs matter
        actual = evaluate(op, arguments)
        assert actual.results[0].dtype == torch.float64, key
        assert_close(actual, truth(op, mixed()))


# ---- layouts ----

LAYOUTS = {
    "row slice": lambda x: x.repeat_interleave(2, 0)[::2],
    "column slice": lambda x: torch.cat([x, x, x], -1)[..., x.shape[-1] : 2 * x.shape[-1]],
    "column step": lambda x: x.repeat_interleave(2, -1)[..., ::2],
    "offset": lambda x: torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape),
    "transposed": lambda x: x.transpose(0, -1).contiguous().transpose(0, -1),
    "expanded": lambda x: x[:1].expand(x.shape),
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x,
    "first channels last": None,  # one in each layout
}


@paired(backend=BACKENDS, name=list(TABLE), dtype=[torch.float32, torch.bfloat16])
def test_layouts(backend, name, dtype):
    op = TABLE[name]

    def draw():
        return op.arguments(dtype=dtype, device=backend.device, n=6, width=37)

    contiguous = evaluate(op, draw())
    for layout, change in LAYOUTS.items():
        arguments = draw()
        tensors = [key for key, x in arguments.items() if isinstance(x, torch.Tensor) and key not in op.state]
        if layout == "expanded":  # rows of integers must differ
            tensors = [key for key in tensors if arguments[key].is_floating_point()]
        if change is None:
            tensors, change = tensors[:1], LAYOUTS["channels last"]
        arguments |= {key: change(arguments[key]) for key in tensors}
        expected = contiguous
        if layout == "expanded":  # the one that changes values
            dense = {key: arguments[key].clone(memory_format=torch.contiguous_format) for key in tensors}
            expected = evaluate(op, draw() | dense)
        outcome = evaluate(op, arguments)
        assert_close(outcome, expected, slack=1.0 if layout == "expanded" else 0.0)


# ---- edges ----


@paired(backend=BACKENDS, name=LOSSES, dtype=DTYPES)
def test_empty_batch(backend, name, dtype):
    arguments = TABLE[name].arguments(dtype=dtype, device=backend.device, n=0)
    outcome = evaluate(TABLE[name], arguments)
    assert outcome.results[0].shape == ((0,) if TABLE[name].options.get("reduction") == "none" else ())
    assert_dtypes(outcome, arguments)
    for key, grad in outcome.grads.items():
        assert grad.shape == arguments[key].shape
        assert grad.count_nonzero() == 0
    assert all(result.sum() == 0 for result in outcome.results)


@each
@pytest.mark.filterwarnings("ignore:sftn_fast. no compiled kernels")
def test_meta_tensors_have_the_shapes_of_others(name):
    op = TABLE[name]
    shapes = [x.shape for x in op.call(ops, op.arguments())]
    moved = op.arguments()
    moved.pop("generator", None)  # there is none on meta
    for key, value in moved.items():
        if isinstance(value, (list, tuple)):
            moved[key] = [x.to("meta") for x in value]
        elif hasattr(value, "to"):
            moved[key] = value.to("meta")
    for key in op.differentiable:
        moved[key].requires_grad_()
    results = op.call(ops, moved)
    assert [x.shape for x in results] == shapes and all(x.is_meta for x in results)
    if op.differentiable:
        results[0].sum().backward()
        assert all(moved[key].grad.shape == moved[key].shape for key in op.differentiable)


@paired(backend=BACKENDS, name=LOSSES, size=[(1, 7), (4, 1), (1, 1)])
def test_smallest_sizes(backend, name, size):
    op, (n, width) = TABLE[name], size
    arguments, same = (op.arguments(device=backend.device, n=n, width=width) for _ in range(2))
    outcome = evaluate(op, arguments)
    assert all(x.isfinite().all() for x in outcome.tensors)
    if not (op.function == "pkt_loss" and n > width == 1):  # only cosines of 1 and -1, at a pole of its logarithm
        assert_close(outcome, truth(op, same), slack=1.0)


@paired(backend=BACKENDS, name=LOSSES, dtype=HALF)
def test_large_half_precision_values_stay_finite(backend, name, dtype):
    """Vectors of norm 320 and more: float16 can't hold the squares."""
    arguments = TABLE[name].arguments(dtype=dtype, device=backend.device, spread=100.0)
    outcome = evaluate(TABLE[name], arguments)
    assert all(result.isfinite().all() for result in outcome.results)
    assert all(grad.isfinite().all() for grad in outcome.grads.values() if grad.dtype == torch.bfloat16)
    assert not any(grad.isnan().any() for grad in outcome.grads.values())


@each_loss
def test_equal_rows_stay_finite(backend, name):
    op = TABLE[name]
    arguments = op.arguments(device=backend.device)
    for key in op.differentiable:
        if arguments[key].dim() > 1:
            arguments[key] = arguments[key][:1].expand(arguments[key].shape).contiguous()
    assert all(x.isfinite().all() for x in evaluate(op, arguments).tensors)


@paired(backend=BACKENDS, name=[name for name in LOSSES if TABLE[name].shows_nan], dtype=DTYPES)
def test_nan_shows(backend, name, dtype):
    """A NaN anywhere makes the loss NaN, so that training stops at it instead of continuing with a partial loss."""
    for key in TABLE[name].differentiable:
        arguments = TABLE[name].arguments(dtype=dtype, device=backend.device)
        arguments[key].view(-1)[-1] = torch.nan
        total = TABLE[name].call(ops, arguments)[0]
        assert total.isnan().any(), key


# ---- contracts ----


@paired(backend=BACKENDS, name=list(TABLE), dtype=DTYPES)
def test_inputs_are_not_written_to(backend, name, dtype):
    op = TABLE[name]
    arguments = op.arguments(dtype=dtype, device=backend.device)
    before = [bits(x).clone() for x in tensors_of(arguments, without=op.state)]
    evaluate(op, arguments)
    after = [bits(x) for x in tensors_of(arguments, without=op.state)]
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))


@paired(
    backend=[name for name in BACKENDS if name != "emulated"], name=list(TABLE), dtype=[torch.float32, torch.bfloat16]
)
def test_same_inputs_same_bits(backend, name, dtype):
    """The emulator repeats a schedule exactly: tests/simt/test_schedules.py compares different ones."""
    op = TABLE[name]
    first, second = (evaluate(op, op.arguments(dtype=dtype, device=backend.device, n=24, width=65)) for _ in range(2))
    assert_same_bits(first, second)


@each
@pytest.mark.parametrize("backend", ["cpu"], indirect=True)
def test_threads_do_not_change_the_bits(backend, name):
    op = TABLE[name]
    outcomes = on_threads(lambda: evaluate(op, op.arguments(n=129, width=500)))
    for outcome in outcomes[1:]:
        (assert_close if op.long_products else assert_same_bits)(outcomes[0], outcome)


@paired(backend=BACKENDS, name=list(TABLE), dtype=[torch.float32, torch.bfloat16])
def test_autocast_leaves_the_loss_alone(backend, name, dtype):
    op = TABLE[name]

    def in_autocast(*arguments):
        with torch.autocast(backend.device, dtype=torch.bfloat16):
            return op.call(*arguments)

    plain = evaluate(op, op.arguments(dtype=dtype, device=backend.device))
    outcomes = [evaluate(op, op.arguments(dtype=dtype, device=backend.device), call=in_autocast)]
    if backend.fused:  # the backward pass too, which PyTorch would run in half precision
        with torch.autocast(backend.device, dtype=torch.bfloat16):
            outcomes.append(evaluate(op, op.arguments(dtype=dtype, device=backend.device)))
    for cast in outcomes:
        for a, b in zip(cast.tensors, plain.tensors, strict=True):
            assert a.dtype == b.dtype
        assert_close(cast, plain)


@each
def test_without_gradients(backend, name):
    """The values are the same without gradients, whether the inputs require one or not."""
    op = TABLE[name]
    expected = evaluate(op, op.arguments(device=backend.device))
    for mode in (torch.no_grad, torch.inference_mode):
        arguments = op.arguments(device=backend.device)
        for key in op.differentiable:
            arguments[key].requires_grad_()
        torch.manual_seed(0)
        with mode():
            results = op.call(ops, arguments)
        assert not any(result.requires_grad for result in results)
        assert_close(Outcome(results, {}, op.states(arguments)), Outcome(expected.results, {}, expected.states))
