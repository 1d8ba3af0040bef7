"""The autograd nodes in C++ beside the autograd functions in Python, which they stand for."""

from __future__ import annotations

import threading
import weakref
from contextlib import nullcontext

import pytest
import torch
from every_op import LOSSES, TABLE, Outcome, assert_same_bits, evaluate
from families import needs_kernels
from torch._dynamo import compiled_autograd
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from sftn_fast import ops
from sftn_fast.ops import _nodes

IN_PYTHON = {"crd", "crd-frozen", "crd-half", "crd-first", "wkd", "wkd-T8", "sp"}
IN_PYTHON |= {"adapted_hint", "adapted_hint-eval", "divergence-none"}
"""Losses without a node: their cost is not Python's, or a row has a gradient of its own."""

pytestmark = needs_kernels


@pytest.fixture(autouse=True)
def built(request):
    if not _nodes.LIBRARY.loaded:
        from conftest import missing

        missing(f"no autograd nodes: {_nodes.LIBRARY.error}")


def total_of(name, *, device="cpu", **sizes):
    """Return the total of a loss of the table, and its leaves."""
    op = TABLE[name]
    arguments = op.arguments(device=device, **sizes)
    leaves = [arguments[key].requires_grad_() for key in op.differentiable]
    return op.call(ops, arguments)[0], leaves


def is_node(total):
    return total.grad_fn.name().startswith("sftn_fast::")


@pytest.mark.parametrize("backend", ["cpu", "emulated"], indirect=True)
@pytest.mark.parametrize("name", LOSSES)
def test_the_same_bits(backend, name):
    op = TABLE[name]
    for dtype in (torch.float32, torch.bfloat16):
        in_cpp = evaluate(op, op.arguments(dtype=dtype))
        with _nodes.in_python():
            in_python = evaluate(op, op.arguments(dtype=dtype))
        assert_same_bits(in_cpp, in_python)


@pytest.mark.parametrize("name", LOSSES)
def test_which_losses_have_a_node(name):
    assert is_node(total_of(name)[0]) == (name not in IN_PYTHON)


@pytest.mark.parametrize("factor", [1.0, 0.0, 3.0, -1e-30, float("nan")])
@pytest.mark.parametrize("name", ["kd", "kd_ce", "sftn", "dkd", "hint", "at", "rkd", "dist"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64], ids=str)
def test_the_gradient_of_the_total_counts(name, factor, dtype):
    def gradients():
        total, leaves = total_of(name, dtype=dtype)
        return torch.autograd.grad(total * factor, leaves, allow_unused=True)

    found = gradients()
    with _nodes.in_python():
        expected = gradients()
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("name", ["kd", "kd_ce", "dkd", "hint", "rkd"])
def test_a_graph_can_be_kept_and_not_used_after_its_end(name):
    total, leaves = total_of(name)
    first = torch.autograd.grad(total, leaves, retain_graph=True)
    again = torch.autograd.grad(2 * total, leaves, retain_graph=True)
    last = torch.autograd.grad(total, leaves)
    for one, two, three in zip(first, again, last, strict=True):
        assert torch.equal(one, three) and torch.equal(2 * one, two)
    with pytest.raises(RuntimeError, match="a second time"):
        torch.autograd.grad(total, leaves)


@pytest.mark.parametrize("name", ["kd", "kd_ce", "vid", "at", "rkd"])
def test_a_write_to_a_saved_input_is_found(name):
    total, leaves = total_of(name)
    with torch.no_grad():
        leaves[0].mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        total.backward()


@pytest.mark.parametrize("name", ["kd", "sftn", "vid", "rkd"])
def test_saved_tensors_go_through_hooks(name):
    """As for offloading to the host: each is packed, and unpacked once."""
    packed, unpacked = [], []

    def unpack(x):
        unpacked.append(x)
        return packed[x]

    with torch.autograd.graph.saved_tensors_hooks(lambda x: packed.append(x.clone()) or len(packed) - 1, unpack):
        total, leaves = total_of(name)
    found = torch.autograd.grad(total, leaves)
    assert packed and len(unpacked) == len(set(unpacked))
    for one, other in zip(found, torch.autograd.grad(*total_of(name)), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("error", [RuntimeError, ValueError])
@pytest.mark.parametrize("name", ["kd", "kd_ce", "vid", "rkd"])
def test_an_error_of_a_hook_is_its_own(name, error):
    def pack(x):
        raise error("the disk is full")

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x), pytest.raises(error, match="the disk is full"):
        total_of(name)


class Tagged(torch.Tensor):
    """A subclass whose operations Python must see."""


class Seen(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        self.names.add(op.namespace)
        return op(*args, **(kwargs or {}))


def test_python_does_what_python_must_hear_of():
    student, teacher = torch.randn(5, 7), torch.randn(5, 7)
    learning = student.clone().requires_grad_()
    assert is_node(ops.kd_loss(learning, teacher))
    assert ops.kd_loss(student, teacher).grad_fn is None
    with torch.no_grad():
        assert ops.kd_loss(learning, teacher).grad_fn is None
    with Seen() as seen:
        assert not is_node(ops.kd_loss(learning, teacher))
    assert seen.names >= {"sftn_fast"}
    assert not is_node(ops.ab_loss(learning.as_subclass(Tagged), teacher))
    with torch.inference_mode():
        of_inference = teacher.clone()
    assert not is_node(ops.at_loss(learning[:, :, None, None], of_inference[:, :, None, None]))
    with _nodes.in_python():
        assert not is_node(ops.kd_loss(learning, teacher))


@pytest.mark.parametrize("name", ["kd", "kd_ce", "hint", "at", "rkd", "dist", "dkd"])
def test_a_graph_is_freed(name):
    total, leaves = total_of(name)
    gone = [weakref.ref(leaf) for leaf in leaves]
    total.backward()
    del total, leaves
    assert all(leaf() is None for leaf in gone)


def test_threads_side_by_side():
    """The GIL is released while a loss is computed, and a graph may be walked by another thread."""
    expected = [evaluate(TABLE[name], TABLE[name].arguments(n=40, width=50)) for name in ("kd_ce", "rkd", "at")]
    found: list[list[Outcome]] = []

    def work():
        results = []
        for name in ("kd_ce", "rkd", "at") * 5:
            results.append(evaluate(TABLE[name], TABLE[name].arguments(n=40, width=50)))
        found.append(results)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    for results in found:
        for number, result in enumerate(results):
            assert_same_bits(result, expected[number % 3])


def test_refusals_read_alike():
    student, teacher = torch.randn(4, 6, requires_grad=True), torch.randn(4, 6)
    calls = {
        "class": lambda: ops.kd_ce_loss(student, teacher, torch.tensor([0, 1, 6, 2])),
        "shape": lambda: ops.kd_loss(student, teacher[:, :5]),
        "dtype": lambda: ops.hint_loss(student, teacher.long()),
        "value": lambda: ops.kd_loss(student, teacher, -1.0),
        "unchecked": lambda: unchecked(lambda: ops.dkd_loss(student, teacher[:3], torch.zeros(4, dtype=torch.int64))),
        "type": lambda: unchecked(lambda: ops.ab_loss(student, teacher, margin="wide")),
        "flag": lambda: unchecked(lambda: ops.ttm_loss(student, teacher, weighted="no")),
        "too large": lambda: ops.kd_ce_loss(student, teacher, torch.zeros(4, dtype=torch.int64), ignore_index=2**70),
    }

    def unchecked(call):
        with ops.unchecked():
            return call()

    def message(call):
        with pytest.raises((RuntimeError, TypeError, ValueError, OverflowError)) as raised:
            call()
        return type(raised.value), str(raised.value).partition("\n")[0]

    for what, call in calls.items():
        in_cpp = message(call)
        with _nodes.in_python():
            assert message(call) == in_cpp, what
        assert "c10" not in in_cpp[1] and "frame #" not in in_cpp[1]


SCALED = ["kd", "kd_ce", "sftn", "dkd", "nkd", "pkt", "vid", "at", "rkd", "dist"]


@pytest.mark.parametrize("name", SCALED)
def test_a_gradient_of_the_total_that_is_no_plain_number(name):
    """The memory of a negative view, as of ``(z.conj() - 1).imag``, holds another number; zeros may have none."""

    def gradients(upstream):
        total, leaves = total_of(name)
        return torch.autograd.grad(total, leaves, upstream, allow_unused=True)

    one = torch.ones(())
    for negated in (torch._neg_view(one), torch.complex(torch.zeros(()), one).conj().imag):
        for found, expected in zip(gradients(negated), gradients(one), strict=True):
            assert torch.equal(found, -expected)
    assert not any(grad.any() for grad in gradients(torch._efficientzerotensor(())))


@pytest.mark.parametrize("name", ["kd", "dkd"])
def test_a_sparse_gradient_of_the_total(name):
    total, leaves = total_of(name)
    for grad in torch.autograd.grad(total, leaves, torch.ones(()).to_sparse()):
        assert grad.layout == torch.strided and grad.any()


@pytest.mark.parametrize("name", [name for name in LOSSES if not TABLE[name].state])
def test_an_undefined_gradient_of_the_total_leaves_none(name):
    class Drop(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            return None

    for where in (nullcontext, _nodes.in_python):
        with where():
            total, leaves = total_of(name)
            Drop.apply(total).sum().backward()
            assert all(leaf.grad is None for leaf in leaves), where


@pytest.mark.parametrize("name", [name for name in LOSSES if not TABLE[name].state])
def test_tensors_are_saved_in_one_order(name):
    """Activation checkpointing counts them, and may see only one of the two ways in a mode."""

    def saved():
        shapes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: shapes.append(x.shape) or x, lambda x: x):
            total_of(name)
        return shapes

    in_cpp = saved()
    with _nodes.in_python():
        assert saved() == in_cpp


@pytest.mark.parametrize("name", ["kd", "kd_ce", "sftn", "kd-none", "dkd", "rkd", "dist", "at"])
@pytest.mark.compiles
def test_compiled_autograd(name):
    total, leaves = total_of(name)
    expected = torch.autograd.grad(total.sum(), leaves)
    total, leaves = total_of(name)
    with compiled_autograd._enable(torch.compile(backend="eager")):
        total.sum().backward()
    assert all(map(torch.equal, [leaf.grad for leaf in leaves], expected))


@pytest.mark.parametrize("name", ["kd", "vid", "rkd"])
def test_hooks_of_new_nodes_see_them_complete(name):
    if not hasattr(torch.autograd.graph, "node_creation_hook"):
        pytest.skip("this torch has no such hooks")
    seen = []
    with torch.autograd.graph.node_creation_hook(lambda node: seen.append((node.name(), len(node.next_functions)))):
        total, _ = total_of(name)
    assert seen.count((total.grad_fn.name(), len(total.grad_fn.next_functions))) == 1


def test_a_hook_that_fails_once_is_heard():
    failures = [RuntimeError("the disk is full")]

    def pack(x):
        if failures:
            raise failures.pop()
        return x

    hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x)
    with hooks, pytest.raises(RuntimeError, match="the disk is full"):
        total_of("kd")


def test_modes_of_functions_see_the_ops():
    class Named(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            names.append(str(func))
            return func(*args, **(kwargs or {}))

    names: list[str] = []
    with Named():
        assert not is_node(total_of("dkd")[0])
    assert any("logits_divergence" in name for name in names)


def test_a_library_of_another_interface_is_refused(monkeypatch):
    monkeypatch.setattr(_nodes, "INTERFACE", -1)
    module, library = _nodes._load()
    assert module is None and "another version of the package" in library.error


def test_a_library_of_another_torch_is_not_loaded(tmp_path, monkeypatch):
    (tmp_path / "_nodes_cp39_torch1_0.so").write_text("no library")
    monkeypatch.setattr(_nodes, "PACKAGE", tmp_path)
    module, library = _nodes._load()
    assert module is None and not library.loaded and "was not built" in library.error


def test_a_broken_library_is_named_with_its_reason(tmp_path, monkeypatch):
    (tmp_path / f"{_nodes.NAME}.so").write_text("no library")
    monkeypatch.setattr(_nodes, "PACKAGE", tmp_path)
    module, library = _nodes._load()
    assert module is None and library.error.startswith("ImportError")
